"""Swin transformers: timm's class, and SOLIDER's with its semantic controller."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from rayreid.errors import UserError
from rayreid.models.interface import Backbone
from rayreid.models.options import check_options

SWINS: dict[str, dict[str, Any]] = {
    "swin_tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "swin_base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}
SEMANTIC_SWINS = {f"{name}_solider": own for name, own in SWINS.items()}
SWIN_OPTIONS = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")
SOLIDER_OPTIONS = (*SWIN_OPTIONS, "semantic_weight")
SEMANTIC_WEIGHT = 0.2
"""λ of SOLIDER for re-identification, where appearance counts more than semantics (SOLIDER-REID, README).
"""


class Swin(SwinTransformer, Backbone):
    """timm's SwinTransformer; its feature is the mean over the last map after the final norm."""


class Solider(Swin):
    """A Swin whose maps between two stages are scaled and shifted per channel by a semantic controller.

    x ← x · softplus(W_i (λ, 1 − λ)) + V_i (λ, 1 − λ), with λ in [0, 1]: 1 asks for semantics, 0 for appearance
    (SOLIDER, arXiv 2303.17602, section 3.3). λ is a setting of the network. The controller's layers are fixed in
    fine-tuning, as published. The one after the last stage, whose output nothing reads, is left out.
    """

    def __init__(self, semantic_weight: float, **arguments: Any):
        super().__init__(**arguments)
        widths = [int(self.embed_dim) * 2**stage for stage in range(1, self.num_layers)]
        self.semantic_embed_w = nn.ModuleList(nn.Linear(2, width) for width in widths)
        self.semantic_embed_b = nn.ModuleList(nn.Linear(2, width) for width in widths)
        for parameter in (*self.semantic_embed_w.parameters(), *self.semantic_embed_b.parameters()):
            parameter.requires_grad_(False)
        self.semantic_weight = semantic_weight

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map (B, h, w, D) after the final norm, for images (B, 3, H, W)."""
        x = self.patch_embed(x)
        weights = torch.tensor([self.semantic_weight, 1 - self.semantic_weight], dtype=x.dtype, device=x.device)
        controllers = [None, *zip(self.semantic_embed_w, self.semantic_embed_b, strict=True)]
        stages: Any = self.layers
        for stage, controller in zip(stages, controllers, strict=True):
            x = stage.downsample(x)
            if controller is not None:
                scale, shift = (layer(weights) for layer in controller)
                x = x * F.softplus(scale) + shift
            x = stage.blocks(x)
        out: Tensor = self.norm(x)
        return out


def build_swin(name: str, size: tuple[int, int], drop_path: float, overrides: dict[str, Any]) -> Swin:
    """Return a Swin with fresh weights; see `rayreid.models.backbones.build_backbone`."""
    check_options(overrides, SOLIDER_OPTIONS if name in SEMANTIC_SWINS else SWIN_OPTIONS, name)
    if size[0] % 32 or size[1] % 16:
        raise UserError(f"backbone {name} needs a height divisible by 32 and a width by 16, not {size[0]}x{size[1]}")
    # Whole windows everywhere, padded if a ReID map is narrower than one. The shapes of the weights then do not depend
    # on the image size, so that weights for 224x224 or another ReID size fit unchanged.
    arguments = {
        "img_size": size,
        "num_classes": 0,
        "strict_img_size": False,
        "always_partition": True,
        "drop_path_rate": drop_path,
        "window_size": 7,
        **{**SWINS, **SEMANTIC_SWINS}[name],
    }
    arguments |= overrides
    if name not in SEMANTIC_SWINS:
        return Swin(**arguments)
    semantic_weight = float(arguments.pop("semantic_weight", SEMANTIC_WEIGHT))
    if not 0 <= semantic_weight <= 1:
        raise UserError(f"backbone semantic_weight is a share from 0 to 1, not {semantic_weight}")
    return Solider(semantic_weight, **arguments)
