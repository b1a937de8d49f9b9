"""Vision Transformers: timm's class with any stem, with extra tokens, LayerScale and SwiGLU, and DINOv3's."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers.mlp import SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rayreid.errors import UserError
from rayreid.models.blocks import class_tokens, first_tokens
from rayreid.models.interface import Backbone
from rayreid.models.options import check_options
from rayreid.models.positions import resample_positions
from rayreid.models.stems import STEMS, Stem
from rayreid.training.compilation import compilable

VITS: dict[str, dict[str, int]] = {
    "vit_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
_GIANT = {"embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp": "swiglu", "mlp_ratio": 2.66667 * 2}
_HUGE = {"embed_dim": 1280, "depth": 32, "num_heads": 20}
_LARGER: Mapping[str, Mapping[str, Any]] = {name: VITS[name] for name in ("vit_small", "vit_base", "vit_large")}
_DINOV2: dict[str, Any] = {"patch_size": 14, "layer_scale": True}
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"{name}_dinov2": {**own, **_DINOV2} for name, own in {**_LARGER, "vit_giant": _GIANT}.items()},
    **{
        f"{name}_dinov2_reg4": {**own, **_DINOV2, "registers": 4}
        for name, own in {**_LARGER, "vit_giant": _GIANT}.items()
    },
    **{f"{name}_pass": {**VITS[name], "parts": 3} for name in ("vit_small", "vit_base")},
}
"""ViTs of published models: DINOv2 (arXiv 2304.07193), with registers (2309.16588), and PASS (2203.03931)."""

DINOV3S: dict[str, dict[str, Any]] = {
    **{f"{name}_dinov3": {**own} for name, own in _LARGER.items()},
    "vit_small_plus_dinov3": {**VITS["vit_small"], "mlp": "swiglu"},
    "vit_huge_plus_dinov3": {**_HUGE, "mlp": "swiglu"},
}
"""ViTs of DINOv3 (arXiv 2508.10104): rotary positions, four registers."""

VIT_OPTIONS = ("embed_dim", "num_heads", "patch_size", "mlp_ratio", "layer_scale", "registers", "parts", "mlp")
DINOV3_OPTIONS = ("embed_dim", "num_heads", "patch_size", "mlp_ratio", "mlp", "qkv_bias")
LAYER_SCALE = 1e-5
"""Initial value of LayerScale's factors in DINOv2 and DINOv3."""


class ViT(VisionTransformer, Backbone):
    """timm's VisionTransformer, which returns the class token after the final norm.

    It accepts any image size that the patch divides. With registers, which have no position, the class token has none
    either (timm: `no_embed_class`).
    """

    patch_embed: Stem
    pos_embed: nn.Parameter
    cls_token: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # timm's takes a mask, too
        """Return the features (B, D) of images (B, 3, H, W)."""
        return self.features([x])

    def features(self, crops: Sequence[Tensor]) -> Tensor:
        """Return the features (sum of n, D) of crops, one tensor (n, 3, H, W) per size.

        The blocks take all sizes at once.
        """
        tokens = [_embedded(self, crop) for crop in crops]
        out: Tensor = self.norm(class_tokens(self.blocks, tokens, self.grad_checkpointing))
        return out

    def patch_features(self, images: Tensor) -> Tensor:
        """Return the mean of the patch tokens after the final norm (B, D), for images (B, 3, H, W)."""
        tokens = _embedded(self, images)
        every = first_tokens(self.blocks, [tokens], tokens.shape[1], self.grad_checkpointing)
        out: Tensor = self.norm(every[:, self.num_prefix_tokens :]).mean(dim=1)
        return out

    def checkpoint_activations(self) -> None:
        """Keep only the blocks' inputs for the backward pass, which then computes each block again."""
        self.set_grad_checkpointing(True)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Return tokens (B, h, w, D) as (B, 1 + registers + h·w, D), with position embedding.

        timm resamples the table with anti-aliasing, the published code without (`resample_positions`).
        """
        rows = 0 if self.no_embed_class else 1
        positions = resample_positions(self.pos_embed, self.patch_embed.grid_size, (x.shape[1], x.shape[2]), rows)
        before = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        patches = x.flatten(1, 2)
        if rows:
            out: Tensor = self.pos_drop(torch.cat([*before, patches], dim=1) + positions)
        else:
            out = self.pos_drop(torch.cat([*before, patches + positions], dim=1))
        return out

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> Tensor:
        """Return the attention of the last block from the class token to the patches, (B, heads, N), row-major patches.

        The softmax is over all tokens, so a row sums to 1 minus the attention to the class token and the registers.
        """
        x = self.blocks[:-1](self._pos_embed(self.patch_embed(images)))
        last: Any = self.blocks[-1]
        attention, x = last.attn, last.norm1(x)
        B, N, _ = x.shape
        qkv = attention.qkv(x).reshape(B, N, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = qkv[0][:, :, :1], qkv[1]
        weights = (q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        return weights[:, :, 0, self.num_prefix_tokens :]


class PartViT(ViT):
    """A ViT with part tokens (PASS): the feature is the class token beside the mean of the part tokens, (B, 2 · D).

    Source: PASS, `build_transformer_pass`, `FEAT_FUSION cat`. The part tokens are timm's registers.
    """

    def features(self, crops: Sequence[Tensor]) -> Tensor:
        """Return the features (sum of n, 2 · D) of crops, one tensor (n, 3, H, W) per size."""
        tokens = [_embedded(self, crop) for crop in crops]
        first = self.norm(first_tokens(self.blocks, tokens, self.num_prefix_tokens, self.grad_checkpointing))
        return torch.cat([first[:, 0], first[:, 1:].mean(dim=1)], dim=1)


class DINOv3(Eva, Backbone):
    """timm's Eva as DINOv3 uses it: rotary positions, registers; the feature is the class token after the final norm.

    It accepts any image size that the patch divides.
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # timm's takes a mask, too
        """Return the class tokens (B, D) after the final norm, for images (B, 3, H, W)."""
        tokens: Tensor = self.forward_features(x)
        return tokens[:, 0]

    def patch_features(self, images: Tensor) -> Tensor:
        """Return the mean of the patch tokens after the final norm (B, D), for images (B, 3, H, W)."""
        tokens: Tensor = self.forward_features(images)
        return tokens[:, self.num_prefix_tokens :].mean(dim=1)

    def checkpoint_activations(self) -> None:
        """Keep only the blocks' inputs for the backward pass, which then computes each block again."""
        self.set_grad_checkpointing(True)


@compilable(breaks=True)
def _embedded(vit: ViT, crop: Tensor) -> Tensor:
    """Return a crop's tokens (n, N, D); a stem's synchronised batch norm waits for other workers in between."""
    return vit._pos_embed(vit.patch_embed(crop))


def build_vit(
    name: str,
    stem: str,
    size: tuple[int, int],
    depth: int | None,
    drop_path: float,
    overrides: dict[str, Any],
) -> ViT:
    """Return a ViT with fresh weights; see `rayreid.models.backbones.build_backbone`."""
    check_options(overrides, VIT_OPTIONS, name)
    shape: dict[str, Any] = {**VITS, **VARIANTS}[name] | overrides
    _check_shape(shape, depth)
    parts, registers = shape.pop("parts", 0), shape.pop("registers", 0)
    if shape.pop("layer_scale", False):
        shape["init_values"] = LAYER_SCALE
    if shape.pop("mlp", "") == "swiglu":
        shape |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    kind = PartViT if parts else ViT
    vit = kind(
        img_size=size,
        num_classes=0,
        global_pool="token",
        dynamic_img_size=True,
        drop_path_rate=drop_path,
        embed_layer=STEMS[stem],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        reg_tokens=parts or registers,
        no_embed_class=bool(parts or registers),
        **shape,
    )
    if parts:
        vit.num_features = 2 * vit.embed_dim
    nn.init.trunc_normal_(vit.cls_token, std=0.02)  # as in DINO; timm starts it at 1e-6
    return vit


def build_dinov3(
    name: str, size: tuple[int, int], depth: int | None, drop_path: float, overrides: dict[str, Any]
) -> DINOv3:
    """Return a ViT of DINOv3 with fresh weights; see `rayreid.models.backbones.build_backbone`."""
    check_options(overrides, DINOV3_OPTIONS, name)
    shape: dict[str, Any] = {"patch_size": 16, "qkv_bias": False, **DINOV3S[name], **overrides}
    _check_shape(shape, depth)
    if any(side % shape["patch_size"] for side in size):
        raise UserError(f"image size {size[0]}x{size[1]} is not a multiple of the patch {shape['patch_size']}")
    if shape.pop("mlp", "") == "swiglu":
        shape |= {"swiglu_mlp": True, "swiglu_align_to": 8}
    return DINOv3(
        img_size=size,
        num_classes=0,
        global_pool="token",
        dynamic_img_size=True,
        drop_path_rate=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        init_values=LAYER_SCALE,
        rope_type="dinov3",
        rope_temperature=100,
        rope_rotate_half=True,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        num_reg_tokens=4,
        use_fc_norm=False,
        **shape,
    )


def _check_shape(shape: dict[str, Any], depth: int | None) -> None:
    """Set the depth, if the user gives one; refuse shapes that no ViT has."""
    shape["depth"] = shape["depth"] if depth is None else depth
    if shape["depth"] < 1:
        raise UserError(f"backbone depth must be at least 1, not {depth}")
    if shape["embed_dim"] % shape["num_heads"]:
        raise UserError(f"backbone embed_dim {shape['embed_dim']} is not a multiple of num_heads {shape['num_heads']}")
