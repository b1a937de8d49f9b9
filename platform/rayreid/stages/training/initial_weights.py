"""The weights that a training starts from: which they are, whether they fit, and how they reach the workers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from safetensors.torch import save_file

from rayreid.config import Backbone
from rayreid.data.store.shards import checksum
from rayreid.errors import UserError
from rayreid.execution.production import StageContext
from rayreid.models import backbones, hub
from rayreid.models.checkpoints import read_checkpoint
from rayreid.models.report import LoadReport
from rayreid.models.weights import check_weights, load_weights
from rayreid.paths import data_path

FOLDER = "start"
"""Where weights that were fetched lie for the workers, in the artifact while it is made."""


@dataclass(frozen=True)
class Start:
    """Weights to start from; travels to the workers.

    Attributes:
        path: a file that all workers see.
        strict: see `rayreid.models.weights.load_weights`.
    """

    path: Path
    strict: bool = True

    def load(self, backbone: backbones.Backbone) -> None:
        """Load them."""
        load_weights(backbone, self.path, self.strict)


def network(config: Backbone, drop_path: float = 0.0, checkpointed: bool = False) -> backbones.Backbone:
    """The network that a configuration describes, with fresh weights.

    Raises:
        UserError: there is no such network, or its activations are to be checkpointed and it is no ViT.
    """
    options = {} if config.num_heads is None else {"num_heads": config.num_heads}
    backbone = backbones.build_backbone(
        config.name, config.stem, config.img_size, config.depth, drop_path=drop_path, **options
    )
    if checkpointed:
        backbone.checkpoint_activations()
    return backbone


def source(config: Backbone) -> str | Path | None:
    """`backbone.weights` as a name of timm or an absolute path: a worker's current folder is another one."""
    if config.weights is None or hub.is_name(config.weights):
        return config.weights
    return data_path(config.weights)


def identifier(config: Backbone) -> str | None:
    """What identifies the weights that a backbone starts from: the file's checksum, or timm's name with its tag.

    Raises:
        UserError: there is no such file or name.
    """
    found = source(config)
    if found is None:
        return None
    if isinstance(found, Path) and not found.is_file():
        raise UserError(f"{found}: no such weights file (backbone.weights)")
    content = checksum(found) if isinstance(found, Path) else hub.full_name(found)
    return content if config.strict else f"{content}, what fits of it"


def check(config: Backbone) -> LoadReport | None:
    """Whether the network can be built and its start weights fit; nothing is allocated for it.

    Raises:
        UserError: it cannot, or they do not.
    """
    found = source(config)
    with torch.device("meta"):
        backbone = network(config)
    return None if found is None else check_weights(backbone, found, config.strict)


def prepare(context: StageContext, config: Backbone, given: Path | None = None) -> tuple[Start | None, dict[str, Any]]:
    """Check the start weights before any worker is started, say what will be loaded, and give all workers the same.

    Args:
        context: what is being made.
        config: the network; where `weights` and `strict` say what it starts from.
        given: weights of an earlier stage instead.

    Returns:
        What the workers load, None if nothing, and facts for the artifact.

    Raises:
        UserError: the weights do not fit.
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
    """A model of timm as a file: workers on other machines need no network, and all have the same."""
    path = folder / FOLDER / "weights.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in read_checkpoint(name).state.items()}, path)
    return path
