"""Inspection of a weights file: its network, and whether every tensor is understood. Needs no Ray."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from rayreid.console import Screen
from rayreid.diagnostics.convert_weights import OWN_FACTS, listed, reasons
from rayreid.errors import UserError
from rayreid.models.architecture import Shape, read_off
from rayreid.models.backbones import SWINS, Backbone, DINOv3, Solider, Swin, ViT, build_backbone
from rayreid.models.checkpoint_contents import Checkpoint
from rayreid.models.checkpoints import read_checkpoint, refusal, stem_of
from rayreid.models.finiteness import not_finite
from rayreid.models.formats import TITLES
from rayreid.models.positions import class_rows, patch_of
from rayreid.models.swin import SEMANTIC_SWINS
from rayreid.models.weights import check_weights, read_header

BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")
_NAMES = 14  # columns for the names on the left


def inspect_weights(file: str, keys: bool = False, screen: Screen | None = None) -> None:
    """Print the contents of a weights file.

    Args:
        file: A weights file of any known origin.
        keys: Also list every tensor with its shape and dtype.
        screen: Prints the results.

    Raises:
        UserError: The file is not a weights file, its backbone cannot be built here, or tensors are missing.
    """
    screen = screen or Screen()
    path = Path(file)
    checkpoint = read_checkpoint(path)
    header = read_header(path) if checkpoint.header else {}
    if keys:
        _list(screen, checkpoint)
    try:
        shape = Shape(header["backbone"]) if header else _told(read_off(checkpoint.state), checkpoint.facts_of_shape())
    except UserError as error:
        raise UserError(f"{path}: {refusal(checkpoint, error)}") from error
    backbone = _unloaded(shape, checkpoint.state)
    screen.facts(_lines(path, checkpoint, header or checkpoint.facts, shape, backbone), _NAMES)
    for name, count in not_finite(checkpoint.state).items():
        screen.facts({"not finite": f"{name}: {count}"}, _NAMES)
    report = check_weights(backbone, path, strict=False)
    if not report.whole:
        raise UserError(f"{path} does not load: {report.faults()}; {report.without_strict(len(backbone.state_dict()))}")
    screen.facts({"loads": "whole: every tensor is accounted for"}, _NAMES)


def _lines(
    path: Path, checkpoint: Checkpoint, facts: dict[str, Any], shape: Shape, backbone: Backbone
) -> dict[str, str]:
    state = checkpoint.state
    count = sum(tensor.numel() for name, tensor in state.items() if not name.endswith(BUFFERS))
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())
    known = bool(checkpoint.header)
    return {
        "file": str(path),
        "format": TITLES[checkpoint.format],
        "architecture": _architecture(shape, backbone, known or "num_heads" in facts),
        "stem": stem_of(state) if isinstance(backbone, ViT) else "",
        "image size": _size(shape, backbone, known or "img_size" in facts),
        "parameters": f"{count:,} ({count / 1e6:.1f} M)",
        "tensors": f"{len(state):,}: {', '.join(f'{number} {dtype}' for dtype, number in dtypes.items())}",
        "mean, std": f"{listed(facts['mean'])}, {listed(facts['std'])}" if "mean" in facts else "not in the file",
        "facts": ", ".join(f"{key} {value}" for key, value in facts.items() if key not in OWN_FACTS),
        "ignored": reasons(checkpoint.ignored),
    }


def _told(shape: Shape, said: Mapping[str, Any]) -> Shape:
    """Return the shape, completed with the facts that a foreign file records next to its tensors."""
    return Shape({**shape.spec, **said}, {key: why for key, why in shape.unknown.items() if key not in said})


def _architecture(shape: Shape, backbone: Backbone, known: bool) -> str:
    name = str(shape.spec["name"])
    if isinstance(backbone, Swin):
        spec = {**{**SWINS, **SEMANTIC_SWINS}[name], "window_size": 7, **shape.spec}
        weight = f", semantic_weight {backbone.semantic_weight:g}" if isinstance(backbone, Solider) else ""
        blocks, windows = listed(spec["depths"]), spec["window_size"]
        return f"{name}, width {spec['embed_dim']}, {blocks} blocks, windows of {windows}{weight}"
    if not isinstance(backbone, ViT | DINOv3):
        return name
    vit: Any = backbone
    if "num_heads" in shape.unknown:
        heads = "heads not known (set --num-heads when converting)"
    else:
        heads = f"{vit.blocks[0].attn.num_heads} heads" + ("" if known else " (its width's usual number)")
    return f"{name}, {len(vit.blocks)} blocks, width {vit.embed_dim}, {heads}"


def _size(shape: Shape, backbone: Backbone, known: bool) -> str:
    if "img_size" in shape.unknown:
        return "not known (set --img-size when converting)"
    if not known and not isinstance(backbone, ViT):
        return "any: the weights do not depend on it"
    height, width = backbone.spec["img_size"]
    if not isinstance(backbone, ViT):
        return f"{height}x{width}"
    rows, columns = backbone.patch_embed.grid_size
    guessed = "" if known else " (by the number of its positions)"
    return f"{height}x{width}, a grid of {rows}x{columns}{guessed}"


def _unloaded(shape: Shape, state: Mapping[str, Tensor]) -> Backbone:
    """Build the network without weights; facts that the tensors do not determine are set so that the shapes agree."""
    spec = dict(shape.spec)
    if "num_heads" in shape.unknown:
        spec["num_heads"] = 1
    if "img_size" in shape.unknown:
        down, across = patch_of(spec)
        spec["img_size"] = ((state["pos_embed"].shape[1] - class_rows(state)) * down, across)
    with torch.device("meta"):
        return build_backbone(**spec)


def _list(screen: Screen, checkpoint: Checkpoint) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("key", "shape", "dtype"):
        table.add_column(name, no_wrap=True)
    for name, tensor in checkpoint.state.items():
        table.add_row(escape(name), "x".join(map(str, tensor.shape)) or "1", str(tensor.dtype).removeprefix("torch."))
    for name, reason in checkpoint.ignored.items():
        table.add_row(escape(name), "", f"left out: {escape(reason)}")
    screen.console.print(table)
    screen.say("")
