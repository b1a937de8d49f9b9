"""Decoding of images. It does not need torch, which processes that only read or ingest images need not load."""

import io

import numpy as np
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

# The formats are named so that Pillow never tries its other readers on an untrusted file (the EPS reader, for example,
# starts Ghostscript). The modules are imported because Pillow finds the reader of a named format only once its module
# is loaded.
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

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB of RGB
MAX_SIDE = 32_767  # the index stores heights and widths as int16


class BadImageError(ValueError):
    """An error for bytes that are not a usable image.

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
    """Return the size of an image from its header, without decoding it.

    Args:
        data: The encoded file.

    Returns:
        Height and width in pixels.

    Raises:
        BadImageError: The header is not that of an image. A damaged body goes unnoticed.
    """
    try:
        width, height = _open(data).size
    except MemoryError:
        raise
    except Exception as error:  # for damaged bytes, Pillow's readers raise arbitrary exceptions
        raise _bad(error) from error
    return height, width


def decode(data: bytes | memoryview) -> np.ndarray:
    """Return a fully decoded image as RGB.

    The EXIF orientation is ignored, as in the published code of the field.

    Args:
        data: The encoded file (JPEG, PNG, BMP, WebP, TIFF, PPM, GIF).

    Returns:
        uint8 (H, W, 3).

    Raises:
        BadImageError: The bytes are empty, truncated or not an image, or the image has more than `MAX_PIXELS`. It is a
            ValueError.
    """
    try:
        image = _open(data)
        image.load()
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # for damaged bytes, Pillow's readers raise arbitrary exceptions
        raise _bad(error) from error
