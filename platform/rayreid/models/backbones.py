"""Backbones behind one function, `build_backbone`: timm's ViT with any stem, timm's Swin and ResNet-50."""

import difflib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rayreid.errors import UserError
from rayreid.models.blocks import class_tokens
from rayreid.models.norms import SyncedBatchNorm
from rayreid.models.stems import STEMS, Stem
from rayreid.training.compilation import compilable

VITS: dict[str, dict[str, int]] = {
    "vit_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
SWINS: dict[str, dict[str, Any]] = {
    "swin_tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "swin_base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}
NAMES = (*VITS, *SWINS, "resnet50")
VIT_OPTIONS = ("embed_dim", "num_heads", "patch_size", "mlp_ratio")
SWIN_OPTIONS = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")


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

    def checkpoint_activations(self) -> None:
        """Compute the blocks again in the backward pass instead of keeping what is in them; only a ViT can."""
        raise UserError(f"checkpoint_activations: true is for vit_* only, not {self.spec['name']}")

    def attention_maps(self, images: Tensor) -> Tensor:
        """Return the attention of the class token, (B, heads, N); only a ViT has one."""
        raise UserError(f"backbone {self.spec['name']} has no class token, so no attention maps; use a vit_*")


class ViT(VisionTransformer, Backbone):
    """timm's VisionTransformer, which returns the class token after the final norm.

    It accepts any image size that the patch divides.
    """

    patch_embed: Stem
    pos_embed: nn.Parameter
    cls_token: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # timm's takes a mask, too
        """Return the class tokens (B, D) after the final norm, for images (B, 3, H, W)."""
        return self.features([x])

    def features(self, crops: Sequence[Tensor]) -> Tensor:
        """Return the features (sum of n, D) of crops, one tensor (n, 3, H, W) per size.

        The blocks take all sizes at once.
        """
        tokens = [_embedded(self, crop) for crop in crops]
        out: Tensor = self.norm(class_tokens(self.blocks, tokens, self.grad_checkpointing))
        return out

    def checkpoint_activations(self) -> None:
        """Keep only the blocks' inputs for the backward pass, which then computes each block again."""
        self.set_grad_checkpointing(True)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Return tokens (B, h, w, D) as (B, 1 + h·w, D), with class token and position embedding.

        timm resamples the table with anti-aliasing, the published code without (`resample_positions`).
        """
        positions = resample_positions(self.pos_embed, self.patch_embed.grid_size, (x.shape[1], x.shape[2]))
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], dim=1)
        out: Tensor = self.pos_drop(tokens + positions)
        return out

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> Tensor:
        """Return the attention of the last block from the class token to the patches, (B, heads, N), row-major patches.

        The softmax is over all tokens, so a row sums to 1 minus the class token's attention to itself.
        """
        x = self.blocks[:-1](self._pos_embed(self.patch_embed(images)))
        last: Any = self.blocks[-1]
        attention, x = last.attn, last.norm1(x)
        B, N, _ = x.shape
        qkv = attention.qkv(x).reshape(B, N, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = qkv[0][:, :, :1], qkv[1]
        weights = (q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        return weights[:, :, 0, 1:]


class Swin(SwinTransformer, Backbone):
    """timm's SwinTransformer; its feature is the mean over the last map after the final norm."""


class ResNet50(ResNet, Backbone):
    """timm's ResNet-50 with synchronised batch norm; its feature is the mean over the last map."""


@compilable(breaks=True)
def _embedded(vit: ViT, crop: Tensor) -> Tensor:
    """Return a crop's tokens (n, 1 + h·w, D); a stem's synchronised batch norm waits for other workers in between."""
    return vit._pos_embed(vit.patch_embed(crop))


@compilable(breaks=True)
def _whole(backbone: nn.Module, crop: Tensor) -> Tensor:
    out: Tensor = backbone(crop)
    return out


def resample_positions(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Return the position embedding (1, 1 + H·W, D), class token first, resampled for a crop's grid: (1, 1 + h·w, D).

    Bicubic without anti-aliasing, with scale factors (h + 0.1) / H and (w + 0.1) / W (DINO, `interpolate_pos_encoding`:
    the 0.1 prevents rounding from losing a row). At the model's own grid, the table itself is returned.
    """
    if grid == new_grid:
        return table
    grid_1DHW = table[:, 1:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    scale = [(new + 0.1) / old for new, old in zip(new_grid, grid, strict=True)]
    exact = table.is_cuda and torch.are_deterministic_algorithms_enabled()
    resampled = _interpolated_exactly(grid_1DHW, scale) if exact else _interpolated(grid_1DHW, scale)
    return torch.cat([table[:, :1], resampled.flatten(2).transpose(1, 2)], dim=1)


def _interpolated(grid_1DHW: Tensor, scale: list[float]) -> Tensor:
    return F.interpolate(grid_1DHW, scale_factor=scale, mode="bicubic", align_corners=False)


def _interpolated_exactly(grid_1DHW: Tensor, scale: list[float]) -> Tensor:
    """`_interpolated` as a weighted sum over the old grid: on a GPU its own backward pass is not deterministic."""
    _, _, H, W = grid_1DHW.shape
    units = torch.eye(H * W, device=grid_1DHW.device, dtype=grid_1DHW.dtype).view(1, H * W, H, W)
    weights = _interpolated(units, scale)
    return (grid_1DHW.flatten(2)[..., None] * weights.flatten(2)).sum(dim=2).unflatten(2, weights.shape[2:])


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
        name: vit_tiny vit_small vit_base vit_large (patch 16), swin_tiny swin_small swin_base, resnet50.
        stem: patchify, conv or ics; the last two for ViTs only.
        img_size: (height, width) in pixels for which the position embedding is made; other sizes work in forward.
        depth: Number of ViT blocks, if not the one that the name implies.
        drop_path: Stochastic depth rate of the last block; it rises linearly from 0.
        overrides: ViT: embed_dim, num_heads, patch_size, mlp_ratio; Swin: embed_dim, depths, num_heads, window_size,
            mlp_ratio.

    Raises:
        UserError: The name, the stem or an option is unknown, or the patch does not divide the image size.
    """
    size = (int(img_size[0]), int(img_size[1]))
    _check(name, NAMES, "backbone name")
    _check(stem, STEMS, "backbone stem")
    if name not in VITS and stem != "patchify":
        raise UserError(f"backbone {name} has its own stem; backbone stem {stem!r} is for vit_* only")
    if name not in VITS and depth is not None:
        raise UserError(f"backbone depth is for vit_* only, not {name}")
    if name not in VITS and isinstance(overrides.get("num_heads"), int):
        raise UserError(f"backbone num_heads is for vit_* only, not {name}")
    backbone: Backbone
    if name in VITS:
        backbone = _build_vit(name, stem, size, depth, drop_path, overrides)
    elif name in SWINS:
        backbone = _build_swin(name, size, drop_path, overrides)
    else:
        _check_all(overrides, (), name)
        backbone = ResNet50(
            Bottleneck,  # type: ignore[arg-type]  # timm annotates the class as an instance
            (3, 4, 6, 3),
            num_classes=0,
            norm_layer=SyncedBatchNorm,
            drop_path_rate=drop_path,
        )
    backbone.spec = {
        "name": name,
        "stem": stem,
        "img_size": list(size),
        "depth": depth,
        "drop_path": drop_path,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()},
    }
    return backbone


def _build_vit(
    name: str,
    stem: str,
    size: tuple[int, int],
    depth: int | None,
    drop_path: float,
    overrides: dict[str, Any],
) -> ViT:
    _check_all(overrides, VIT_OPTIONS, name)
    shape: dict[str, Any] = {**VITS[name], **overrides}
    shape["depth"] = shape["depth"] if depth is None else depth
    if shape["depth"] < 1:
        raise UserError(f"backbone depth must be at least 1, not {depth}")
    if shape["embed_dim"] % shape["num_heads"]:
        raise UserError(f"backbone embed_dim {shape['embed_dim']} is not a multiple of num_heads {shape['num_heads']}")
    vit = ViT(
        img_size=size,
        num_classes=0,
        global_pool="token",
        dynamic_img_size=True,
        drop_path_rate=drop_path,
        embed_layer=STEMS[stem],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **shape,
    )
    nn.init.trunc_normal_(vit.cls_token, std=0.02)  # as in DINO; timm starts it at 1e-6
    return vit


def _build_swin(name: str, size: tuple[int, int], drop_path: float, overrides: dict[str, Any]) -> Swin:
    _check_all(overrides, SWIN_OPTIONS, name)
    if size[0] % 32 or size[1] % 16:
        raise UserError(f"backbone {name} needs a height divisible by 32 and a width by 16, not {size[0]}x{size[1]}")
    # Whole windows everywhere, padded if a ReID map is narrower than one. The shapes of the weights then do not depend
    # on the image size, so that weights for 224x224 or another ReID size fit unchanged.
    return Swin(
        img_size=size,
        num_classes=0,
        strict_img_size=False,
        always_partition=True,
        drop_path_rate=drop_path,
        **{"window_size": 7, **SWINS[name], **overrides},
    )


def _check_all(options: Iterable[str], known: Iterable[str], name: str) -> None:
    for option in options:
        _check(option, known, f"option of backbone {name}")


def _check(value: str, known: Iterable[str], what: str) -> None:
    if value not in (known := list(known)):
        _unknown(value, known, what)


def _unknown(value: str, known: list[str], what: str) -> NoReturn:
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
    raise UserError(f"unknown {what} {value!r}; {hint}")
