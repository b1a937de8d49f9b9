"""Stems, which turn an image into patch tokens: the `embed_layer` of timm's VisionTransformer."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayreid.errors import UserError
from rayreid.models.norms import IBN, SyncedBatchNorm

STEM_CHANNELS = 64


class Stem(nn.Module, ABC):
    """The interface of an `embed_layer` of timm's VisionTransformer; subclasses turn pixels into a map of tokens.

    Args:
        img_size: (H, W) in pixels for which the model is built.
        patch_size: Pixels per token, one number for both directions or (h, w).
        in_chans: Number of image channels.
        embed_dim: D, channels per token.
        bias: Whether the last convolution has a bias.
        strict_img_size: Whether only images of `img_size` are accepted (otherwise any size that the patch divides).
        dynamic_img_pad: Padding to whole patches; not available.
        output_fmt: "NHWC" gives (B, h, w, D), as timm requires for dynamic sizes, "NCHW" gives (B, D, h, w), None gives
            (B, N, D).
        device: Device of the parameters.
        dtype: Type of the parameters.

    Attributes:
        grid_size: (h, w) tokens at `img_size`; num_patches = h · w.

    Raises:
        UserError: The patch does not divide the image size (also in forward).
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        bias: bool = True,
        strict_img_size: bool = True,
        dynamic_img_pad: bool = False,
        output_fmt: str | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if dynamic_img_pad:
            raise ValueError("stems do not pad images: give sizes that the patch divides")
        self.img_size = _pair(img_size)
        self.patch_size = _pair(patch_size)
        self.strict_img_size = strict_img_size
        self.output_fmt = output_fmt
        self.grid_size = self.grid(*self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self._build(in_chans, embed_dim, bias)
        self.to(device=device, dtype=dtype)

    @abstractmethod
    def _build(self, in_chans: int, embed_dim: int, bias: bool) -> None:
        """Make the layers."""

    @abstractmethod
    def tokens(self, x: Tensor) -> Tensor:
        """Return tokens (B, D, h, w) of pixels (B, C, H, W)."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the number of tokens (h, w) of an image; raise UserError if the patch does not divide it."""
        patch_h, patch_w = self.patch_size
        if height % patch_h or width % patch_w:
            fit = (max(1, round(height / patch_h)) * patch_h, max(1, round(width / patch_w)) * patch_w)
            raise UserError(
                f"image size {height}x{width} is not a multiple of the patch {patch_h}x{patch_w}; "
                f"the nearest that is: {fit[0]}x{fit[1]}"
            )
        return height // patch_h, width // patch_w

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Return the pixels per token."""
        return max(self.patch_size) if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Return the number of tokens (h, w) of an image of `img_size`."""
        return self.grid(*img_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of pixels (B, C, H, W), in the layout of `output_fmt`."""
        size = (x.shape[-2], x.shape[-1])
        if self.strict_img_size and size != self.img_size:
            raise ValueError(f"the stem is built for {self.img_size}, got an image of {size}")
        self.grid(*size)
        tokens_BDhw = self.tokens(x)
        if self.output_fmt is None:
            return tokens_BDhw.flatten(2).transpose(1, 2)
        return tokens_BDhw.permute(0, 2, 3, 1) if str(self.output_fmt).endswith("NHWC") else tokens_BDhw


class Patchify(Stem):
    """One convolution with the patch's size and stride: ViT's own stem (Dosovitskiy et al. 2021)."""

    def _build(self, in_chans: int, embed_dim: int, bias: bool) -> None:
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.patch_size, bias=bias)

    def tokens(self, x: Tensor) -> Tensor:
        """Return tokens (B, D, h, w) of pixels (B, C, H, W)."""
        return _project(self.proj, x)


class ConvStem(Stem):
    """Three convolutions with batch norm at half resolution, then one with half the patch's size and stride."""

    norm: type[nn.Module] = SyncedBatchNorm

    def _build(self, in_chans: int, embed_dim: int, bias: bool) -> None:
        if self.patch_size[0] % 2 or self.patch_size[1] % 2:
            raise UserError(f"a convolutional stem halves the image first: patch_size {self.patch_size} is odd")
        C = STEM_CHANNELS
        self.conv = nn.Sequential(
            nn.Conv2d(in_chans, C, 7, stride=2, padding=3, bias=False),
            self.norm(C),
            nn.ReLU(inplace=True),
            nn.Conv2d(C, C, 3, padding=1, bias=False),
            self.norm(C),
            nn.ReLU(inplace=True),
            nn.Conv2d(C, C, 3, padding=1, bias=False),
            SyncedBatchNorm(C),
            nn.ReLU(inplace=True),
        )
        patch = (self.patch_size[0] // 2, self.patch_size[1] // 2)
        self.proj = nn.Conv2d(C, embed_dim, patch, patch, bias=bias)

    def tokens(self, x: Tensor) -> Tensor:
        """Return tokens (B, D, h, w) of pixels (B, C, H, W)."""
        if x.is_cuda:  # its convolutions use channels last, and would convert each map there and back
            x = x.contiguous(memory_format=torch.channels_last)
        return _project(self.proj, self.conv(x))


class ICSStem(ConvStem):
    """The IBN-based convolution stem (TransReID-SSL, section 3.3): the first two norms are IBN."""

    norm = IBN


STEMS: dict[str, type[Stem]] = {"patchify": Patchify, "conv": ConvStem, "ics": ICSStem}


def _project(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return `conv(x)`, (B, C, H, W) to (B, D, h, w), as one matrix product; the stride of `conv` is its kernel.

    On a CPU, its backward pass takes a half to two thirds of the convolution's time (measured at the stems' sizes).
    """
    height, width = conv.kernel_size
    patches = x.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    return F.linear(patches, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
