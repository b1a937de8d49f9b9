"""The interface of every backbone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rayreid.errors import UserError
from rayreid.training.compilation import compilable


class Backbone(nn.Module):
    """The interface of every backbone: forward (B, 3, H, W) → (B, D).

    Attributes:
        num_features: D.
        spec: The arguments of `build_backbone` with which this network can be built again; JSON-able.
    """

    num_features: int
    spec: dict[str, Any]

    def features(self, crops: Sequence[Tensor]) -> Tensor:
        """Return the features (sum of n, D) of crops, one tensor (n, 3, H, W) per size, with one forward pass per size.

        Batch norm therefore takes its statistics per size.
        """
        return torch.cat([_whole(self, crop) for crop in crops])

    def patch_features(self, images: Tensor) -> Tensor:
        """Return the mean of the patch tokens after the final norm (B, D), for images (B, 3, H, W); only of a ViT."""
        raise UserError(f"backbone {self.spec['name']} has no class token, only the mean of patches: use token: class")

    def checkpoint_activations(self) -> None:
        """Compute the blocks again in the backward pass instead of keeping what is in them; only a ViT can."""
        raise UserError(f"checkpoint_activations: true is for vit_* only, not {self.spec['name']}")

    def attention_maps(self, images: Tensor) -> Tensor:
        """Return the attention of the class token, (B, heads, N); only a ViT has one."""
        raise UserError(f"backbone {self.spec['name']} has no class token, so no attention maps; use a vit_*")


@compilable(breaks=True)
def _whole(backbone: nn.Module, crop: Tensor) -> Tensor:
    out: Tensor = backbone(crop)
    return out
