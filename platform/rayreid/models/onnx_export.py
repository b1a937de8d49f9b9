"""Export of a backbone to an ONNX file, which is kept only if its output equals the backbone's."""

import copy
import importlib.util
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayreid.errors import UserError, missing_extra
from rayreid.files import replacing
from rayreid.models.backbones import Backbone

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "images", "features"
TOLERANCE = 1e-4
BATCHES = (1, 3)


@dataclass(frozen=True)
class Deviation:
    """The difference between the exported model and the backbone, for seeded normal input.

    Attributes:
        greatest: The largest absolute difference of a feature, in standard deviations of the features.
        tolerance: The largest difference allowed, in the same unit.
        batches: The batch sizes compared.
    """

    greatest: float
    tolerance: float
    batches: tuple[int, ...]


def export_onnx(
    backbone: Backbone,
    path: Path,
    facts: dict[str, Any] | None = None,
    tolerance: float = TOLERANCE,
    batches: Sequence[int] = BATCHES,
) -> Deviation:
    """Export a backbone in eval mode and float32: `images` (B, 3, H, W) to `features` (B, D), with fixed H and W.

    The batch size B is free. The file is run with onnxruntime on the CPU, and compared with the backbone, before it
    gets its name.

    Args:
        backbone: A backbone made by `build_backbone`; it is not changed.
        path: The file to write.
        facts: JSON-able; each becomes an entry of the model's metadata (mean, std).
        tolerance: Largest difference allowed, in standard deviations of the features.
        batches: Batch sizes to compare.

    Raises:
        UserError: A package of the extra `onnx` is missing, or the exported model exceeds the tolerance.
    """
    require_onnx()
    network = copy.deepcopy(backbone).to("cpu", torch.float32).eval()
    with replacing(path) as unfinished:
        _export(network, unfinished)
        _describe(unfinished, {**(facts or {}), "backbone": backbone.spec})
        greatest = _compare(network, unfinished, batches)
        if not greatest <= tolerance:  # also if it is not a number
            raise UserError(
                f"{path} was not written: the exported model differs from the backbone by {greatest:.1e} standard"
                f" deviations of its features, more than {tolerance:.0e}; try other versions of torch and onnxruntime"
            )
    return Deviation(greatest, tolerance, tuple(batches))


def require_onnx() -> None:
    """Raise a UserError if a package of the extra `onnx` is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise missing_extra("exporting to ONNX", "onnx", missing)


def _export(network: Backbone, path: Path) -> None:
    images = _images(network, 2)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own warnings about its internals
        torch.onnx.export(
            network,
            (images,),
            path,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )


def _describe(path: Path, facts: dict[str, Any]) -> None:
    import onnx

    model = onnx.load(path)
    _forget_source(model)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save(model, path)


def _forget_source(message: Any) -> None:
    """Remove the exporter's notes from a model and its parts: they quote the code, with the paths of this machine."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if hasattr(value, "__len__") else [value]:
                _forget_source(part)


def _compare(network: Backbone, path: Path, batches: Sequence[int]) -> float:
    """Return the largest difference over all batch sizes, in standard deviations of the backbone's features."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    greatest = 0.0
    for size in batches:
        images = _images(network, size)
        with torch.no_grad():
            expected = network(images).numpy()
        (features,) = session.run([OUTPUT], {INPUT: images.numpy()})
        greatest = float(np.maximum(greatest, np.abs(features - expected).max() / expected.std()))
    return greatest


def _images(network: Backbone, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, *network.spec["img_size"], generator=generator)
