"""Initial weights of a training: their identity, whether they fit, and how they reach the workers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from safetensors.torch import save_file

from rayreid.config import Backbone
from rayreid.errors import UserError
from rayreid.execution.production import StageContext
from rayreid.files import checksum
from rayreid.models import backbones, hub
from rayreid.models.checkpoints import read_checkpoint
from rayreid.models.report import LoadReport
from rayreid.models.weights import check_weights, load_weights
from rayreid.paths import data_path

FOLDER = "start"
"""Folder of downloaded weights for the workers, inside the artifact while it is made."""


@dataclass(frozen=True)
class Start:
    """Weights to start from; sent to the workers.

    Attributes:
        path: Path of a file that all workers see.
        strict: See `rayreid.models.weights.load_weights`.
    """

    path: Path
    strict: bool = True

    def load(self, backbone: backbones.Backbone) -> None:
        """Load the weights into a backbone."""
        load_weights(backbone, self.path, self.strict)


def network(
    config: Backbone, drop_path: float = 0.0, start: Start | None = None, checkpointed: bool = False
) -> backbones.Backbone:
    """Return the network that a configuration describes, with the weights to start from, or with fresh ones.

    Raises:
        UserError: There is no such network, or its activations are to be checkpointed and it is not a ViT.
    """
    built = backbones.build_backbone(
        config.name, config.stem, config.img_size, config.depth, drop_path=drop_path, **config.options()
    )
    if start is not None:
        start.load(built)
    if checkpointed:
        built.checkpoint_activations()
    return built


def source(config: Backbone) -> str | Path | None:
    """Return `backbone.weights` as a timm name or an absolute path, because workers have other current folders."""
    if config.weights is None or hub.is_name(config.weights):
        return config.weights
    return data_path(config.weights)


def identifier(config: Backbone) -> str | None:
    """Return the identity of the weights that a backbone starts from: a file's checksum, or a timm name with its tag.

    Raises:
        UserError: The file or the timm name does not exist.
    """
    found = source(config)
    if found is None:
        return None
    if isinstance(found, Path) and not found.is_file():
        raise UserError(f"{found}: no such weights file (backbone.weights)")
    content = checksum(found) if isinstance(found, Path) else hub.full_name(found)
    return content if config.strict else f"{content}, what fits of it"


def check(config: Backbone) -> LoadReport | None:
    """Check that the network can be built and that its initial weights fit, without allocating the network.

    Returns:
        The report of the weights; None if training starts from scratch.

    Raises:
        UserError: The network cannot be built, or the weights do not fit.
    """
    found = source(config)
    with torch.device("meta"):
        backbone = network(config)
    return None if found is None else check_weights(backbone, found, config.strict)


def prepare(context: StageContext, config: Backbone, given: Path | None = None) -> tuple[Start | None, dict[str, Any]]:
    """Check the initial weights before any worker starts, print what will be loaded, and give all workers one file.

    Args:
        context: Context of the running stage.
        config: The network; its `weights` and `strict` name the initial weights.
        given: Weights of an earlier stage to use instead.

    Returns:
        The weights that the workers load (None: no weights), and facts for the artifact.

    Raises:
        UserError: The weights do not fit.
    """
    if given is not None:
        config = config.model_copy(update={"weights": str(given), "strict": True})
    report = check(config)
    if report is None:
        return None, {}
    context.screen.say(f"  starts from {escape(str(report))}")
    found = source(config)
    path = found if isinstance(found, Path) else _fetch(context.folder, str(found))
    return Start(path, config.strict), {"start": report.figures()}


def _fetch(folder: Path, name: str) -> Path:
    """Save a timm model as a file, so that workers need no network access and all have the same weights."""
    path = folder / FOLDER / "weights.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in read_checkpoint(name).state.items()}, path)
    return path
