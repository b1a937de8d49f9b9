"""Backbones behind one function, `build_backbone`: timm's ViT with any stem, DINOv3's, timm's Swin and ResNet-50."""

from typing import Any

from rayreid.errors import UserError
from rayreid.models.interface import Backbone
from rayreid.models.options import check_name
from rayreid.models.resnet import RESNETS, ResNet50, build_resnet
from rayreid.models.stems import STEMS
from rayreid.models.swin import SEMANTIC_SWINS, SWINS, Solider, Swin, build_swin
from rayreid.models.vit import DINOV3S, VARIANTS, VITS, DINOv3, PartViT, ViT, build_dinov3, build_vit

__all__ = [
    "NAMES",
    "SWINS",
    "VITS",
    "WITH_TOKENS",
    "Backbone",
    "DINOv3",
    "PartViT",
    "ResNet50",
    "Solider",
    "Swin",
    "ViT",
    "build_backbone",
]

WITH_TOKENS = (*VITS, *VARIANTS, *DINOV3S)
"""Names of the backbones that have a class token and patch tokens."""
NAMES = (*WITH_TOKENS, *SWINS, *SEMANTIC_SWINS, *RESNETS)


def build_backbone(
    name: str,
    stem: str = "patchify",
    img_size: tuple[int, int] = (256, 128),
    depth: int | None = None,
    drop_path: float = 0.0,
    **overrides: Any,
) -> Backbone:
    """Return a backbone with fresh weights.

    Args:
        name: One of `NAMES`: vit_tiny vit_small vit_base vit_large (patch 16), swin_tiny swin_small swin_base,
            resnet50, and the networks of published models, e.g. vit_base_dinov2 (patch 14), vit_small_dinov3,
            vit_base_pass, swin_base_solider, resnet50_ibn.
        stem: patchify, conv or ics; the last two for ViTs only.
        img_size: (height, width) in pixels for which the position embedding is made; other sizes work in forward.
        depth: Number of ViT blocks, if not the one that the name implies.
        drop_path: Stochastic depth rate of the last block; it rises linearly from 0.
        overrides: ViT: embed_dim, num_heads, patch_size, mlp_ratio, layer_scale, registers, parts, mlp (swiglu);
            DINOv3: embed_dim, num_heads, patch_size, mlp_ratio, mlp, qkv_bias; Swin: embed_dim, depths, num_heads,
            window_size, mlp_ratio; SOLIDER's also semantic_weight; ResNet: last_stride.

    Raises:
        UserError: The name, the stem or an option is unknown, or the patch does not divide the image size.
    """
    size = (int(img_size[0]), int(img_size[1]))
    check_name(name, NAMES, "backbone name")
    check_name(stem, STEMS, "backbone stem")
    stemmed = name in VITS or name in VARIANTS
    vit = name in WITH_TOKENS
    if not stemmed and stem != "patchify":
        raise UserError(f"backbone {name} has its own stem; backbone stem {stem!r} is for vit_* only")
    if not vit and depth is not None:
        raise UserError(f"backbone depth is for vit_* only, not {name}")
    if not vit and isinstance(overrides.get("num_heads"), int):
        raise UserError(f"backbone num_heads is for vit_* only, not {name}")
    backbone: Backbone
    if stemmed:
        backbone = build_vit(name, stem, size, depth, drop_path, overrides)
    elif vit:
        backbone = build_dinov3(name, size, depth, drop_path, overrides)
    elif name in RESNETS:
        backbone = build_resnet(name, drop_path, overrides)
    else:
        backbone = build_swin(name, size, drop_path, overrides)
    if isinstance(backbone, Solider):
        overrides = {
            **overrides,
            "semantic_weight": backbone.semantic_weight,
        }  # a default may change; a file keeps its λ
    backbone.spec = {
        "name": name,
        "stem": stem,
        "img_size": list(size),
        "depth": depth,
        "drop_path": drop_path,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()},
    }
    return backbone
