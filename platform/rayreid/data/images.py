"""Encoded bytes to pixels, and images of different sizes in one batch."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Named, so that Pillow never tries its other readers (EPS, for one, starts Ghostscript) on a stranger's file.
# Imported, because Pillow knows the reader of a named format only once its module is loaded.
READERS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    BmpImagePlugin.BmpImageFile,
    WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile,
    PpmImagePlugin.PpmImageFile,
    GifImagePlugin.GifImageFile,
)
FORMATS = tuple(reader.format for reader in READERS)
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"))

MAX_PIXELS = 89_478_485  # Pillow's own bound: a quarter of a GiB of RGB
MAX_SIDE = 32_767  # the index holds heights and widths as int16


class BadImageError(ValueError):
    """Bytes that are no usable image.

    Attributes:
        reason: "zero-size", "undecodable", "truncated" or "too many pixels".
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def _bad(error: Exception) -> BadImageError:
    if isinstance(error, BadImageError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return BadImageError("too many pixels", str(error))
    return BadImageError("truncated" if "truncated" in str(error).lower() else "undecodable", str(error))


def _open(data: bytes | memoryview) -> Image.Image:
    if len(data) == 0:
        raise BadImageError("zero-size")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadImageError("too many pixels", f"{width}x{height}")
    if image.mode.startswith(("I", "F")):
        raise BadImageError("undecodable", f"mode {image.mode}: Pillow clips more than 8 bits a channel")
    return image


def read_size(data: bytes | memoryview) -> tuple[int, int]:
    """Read an image's size from its header, without decoding it.

    Args:
        data: The encoded file.

    Returns:
        Height and width in pixels.

    Raises:
        BadImageError: The header is not one of an image (a damaged body goes unnoticed).
    """
    try:
        width, height = _open(data).size
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes Pillow's readers raise whatever they stumble over
        raise _bad(error) from error
    return height, width


def decode(data: bytes | memoryview) -> np.ndarray:
    """Decode an image fully, as RGB; the EXIF orientation is ignored, as the field's code does.

    Args:
        data: The encoded file (JPEG, PNG, BMP, WebP, TIFF, PPM, GIF).

    Returns:
        uint8 (H, W, 3).

    Raises:
        BadImageError: A ValueError; the bytes are empty, no image, cut off, or more than `MAX_PIXELS`.
    """
    try:
        image = _open(data)
        image.load()
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes Pillow's readers raise whatever they stumble over
        raise _bad(error) from error


@dataclass(frozen=True)
class ImageBatch:
    """Images of different sizes, each in the upper left corner of a frame as large as the largest.

    Attributes:
        pixels: uint8 (B, 3, Hmax, Wmax), zero beyond each image.
        heights: int64 (B,), in pixels.
        widths: int64 (B,), in pixels.
    """

    pixels: torch.Tensor
    heights: torch.Tensor
    widths: torch.Tensor

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch on `device`."""
        return type(self)(
            self.pixels.to(device, non_blocking=non_blocking),
            self.heights.to(device, non_blocking=non_blocking),
            self.widths.to(device, non_blocking=non_blocking),
        )

    @classmethod
    def collate(cls, images: Sequence[np.ndarray]) -> Self:
        """Put decoded images into one batch.

        Args:
            images: uint8 (H, W, 3) each, at least one.

        Raises:
            ValueError: There is no image.
        """
        if not images:
            raise ValueError("a batch needs at least one image")
        heights = [image.shape[0] for image in images]
        widths = [image.shape[1] for image in images]
        frames = np.zeros((len(images), max(heights), max(widths), 3), dtype=np.uint8)
        for frame, image, height, width in zip(frames, images, heights, widths, strict=True):
            frame[:height, :width] = image
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
        return cls(pixels, torch.tensor(heights), torch.tensor(widths))
