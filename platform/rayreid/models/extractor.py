"""A model for use in other code: from pixels to comparable features, with nothing of this project but its weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rayreid.models.neck import load_neck
from rayreid.models.weights import load_backbone


class Extractor(nn.Module):
    """A network for features that are compared by cosine.

    It normalises pixels for the weights, and features to length 1.

    Args:
        backbone: The backbone, in eval mode.
        neck: The layer between the backbone's feature and the one that is compared; the identity if the model has none.
        mean: Mean per channel, of images in [0, 1].
        std: Standard deviation per channel, of images in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, neck: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, D) float32 of length 1, for images (B, 3, H, W) float32 RGB in [0, 1] of the model's size."""
        features: Tensor = self.neck(self.backbone((images - self.mean) / self.std))
        return normalize(features, dim=1)


def load_extractor(path: Path) -> tuple[Extractor, tuple[int, int]]:
    """Return the extractor of a weights file of ours, in eval mode, and the size (height, width) of its images."""
    backbone, header = load_backbone(path, drop_path=0.0)
    height, width = backbone.spec["img_size"]
    return Extractor(backbone, load_neck(path), header["mean"], header["std"]).eval(), (height, width)
