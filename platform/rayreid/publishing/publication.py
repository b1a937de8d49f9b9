"""The network that is published: a model's backbone, with its neck folded into it where that is possible."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayreid.models.backbones import Backbone
from rayreid.models.neck import Neck, load_neck
from rayreid.models.weights import load_backbone
from rayreid.publishing.origin import without_places
from rayreid.publishing.timm_config import lacks

_FACTS = ("method", "epochs", "interpolation")
"""Facts of a weights file that are published with it; others may name places of the machine."""


@dataclass(frozen=True)
class Publication:
    """The network to publish.

    Attributes:
        backbone: The network, in eval mode; a neck is folded into its last norm where it has one.
        header: The facts of its weights file that are published: `mean`, `std`, `method` and so on.
        neck: A neck that could not be folded; it stays a layer of its own.
        folded: Whether a neck was folded.
    """

    backbone: Backbone
    header: dict[str, Any]
    neck: Neck | None
    folded: bool

    @property
    def network(self) -> Backbone:
        """Return the network from pixels to the features that are compared."""
        return self.backbone if self.neck is None else _WithNeck(self.backbone, self.neck)

    @property
    def lacking(self) -> str:
        """Return what timm lacks of this model, in words; empty if it can load it."""
        return lacks(self.backbone) or ("the BNNeck, which no norm precedes" if self.neck is not None else "")


class _WithNeck(Backbone):
    """A network whose features pass through a neck."""

    def __init__(self, backbone: Backbone, neck: Neck):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.spec, self.num_features = backbone.spec, backbone.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, D) of images (B, 3, H, W)."""
        out: Tensor = self.neck(self.backbone(x))
        return out


def read_publication(file: Path) -> Publication:
    """Return the network of a weights file as it is published."""
    backbone, header = load_backbone(file, drop_path=0.0)
    backbone.eval()
    known = {key: without_places(header[key]) for key in _FACTS if key in header}
    facts = {"mean": header["mean"], "std": header["std"], **known}
    neck = load_neck(file)
    if not isinstance(neck, Neck):
        return Publication(backbone, facts, None, folded=False)
    folded = fold(backbone, neck)
    return Publication(backbone, facts, None if folded else neck, folded)


@torch.no_grad()
def fold(backbone: nn.Module, neck: Neck) -> bool:
    """Fold a neck into the layer norm with which a network ends, and return whether it has one of the same width.

    After the norm the network at most takes a token or a mean, which commute with the neck's scale and shift.
    """
    norm = getattr(backbone, "norm", None)
    if not isinstance(norm, nn.LayerNorm) or norm.weight.shape != neck.scale.shape:
        return False
    norm.weight.mul_(neck.scale)
    norm.bias.mul_(neck.scale).add_(neck.shift)
    return True
