"""Decoding of images. It does not need torch, which processes that only read or ingest images need not load."""

import io
from typing import NamedTuple

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from rayreid.data.signatures import HEAD_BYTES, other_kind

try:
    from PIL.AvifImagePlugin import AvifImageFile
except ImportError:  # Pillow before 11.3
    _AVIF: tuple[type[ImageFile.ImageFile], ...] = ()
else:
    _AVIF = (AvifImageFile,)

# The formats are named so that Pillow never tries its other readers on an untrusted file (the EPS reader, for example,
# starts Ghostscript). The modules are imported because Pillow finds the reader of a named format only once its module
# is loaded.
READERS: tuple[type[ImageFile.ImageFile], ...] = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    BmpImagePlugin.BmpImageFile,
    WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile,
    PpmImagePlugin.PpmImageFile,
    GifImagePlugin.GifImageFile,
    Jpeg2KImagePlugin.Jpeg2KImageFile,
    *_AVIF,
)
FORMATS = tuple(str(reader.format) for reader in READERS)
SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jpg_large", ".jpeg_large", ".png", ".bmp", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".avif", ".jp2", ".j2k", ".jpx", ".heic", ".heif"),
    )
)
"""Suffixes of the names of images; HEIC is among them so that such an image is rejected and not overlooked."""

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB of RGB
MAX_SIDE = 32_767  # the index stores heights and widths as int16


UPRIGHT = 1
"""The EXIF orientation of an image that is shown as it is stored."""


class Header(NamedTuple):
    """The facts about an image that an index holds.

    Attributes:
        height: Height in pixels, as the image is shown.
        width: Width in pixels, as the image is shown.
        orientation: EXIF orientation, 1 to 8: how the stored pixels are turned or mirrored to be shown.
    """

    height: int
    width: int
    orientation: int


class BadImageError(ValueError):
    """An error for bytes that are not a usable image.

    Attributes:
        reason: "zero-size", "undecodable", "truncated", "too many pixels", or the kind of file that it is instead.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def _bad(error: Exception, data: bytes | memoryview) -> BadImageError:
    if isinstance(error, BadImageError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return BadImageError("too many pixels", str(error))
    if (kind := other_kind(bytes(data[:HEAD_BYTES]))) is not None:
        return BadImageError(kind)
    return BadImageError("truncated" if "truncated" in str(error).lower() else "undecodable", str(error))


def _open(data: bytes | memoryview) -> Image.Image:
    if len(data) == 0:
        raise BadImageError("zero-size")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check(image)
    return image


def _check(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadImageError("too many pixels", f"{width}x{height}")
    if image.mode.startswith(("I", "F")) and not image.mode.startswith("I;16") and not _is_deep_pgm(image):
        raise BadImageError("undecodable", f"mode {image.mode}: Pillow clips more than 16 bits a channel")


def _orientation(image: Image.Image) -> int:
    """Return an opened image's EXIF orientation, 1 if it has none or an invalid one."""
    if image.format == "TIFF":  # Pillow itself turns a TIFF
        return UPRIGHT
    try:
        # PNG's own method decodes the whole image first, to find a block that lies behind the pixels.
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # damaged metadata raise arbitrary exceptions, and are no reason to refuse the pixels
        return UPRIGHT
    return found if found in range(1, 9) else UPRIGHT


def examine(data: bytes | memoryview, decoding: bool) -> Header:
    """Return the facts about an image that an index holds.

    Args:
        data: The encoded file.
        decoding: Whether to decode the image fully, as `decode` does; otherwise a damaged body goes unnoticed.

    Raises:
        BadImageError: See `decode`.
    """
    try:
        image = _open(data)
        orientation = _orientation(image)
        width, height = image.size
        if decoding:
            _pixels(image)
    except MemoryError:
        raise
    except Exception as error:  # for damaged bytes, Pillow's readers raise arbitrary exceptions
        raise _bad(error, data) from error
    return Header(width, height, orientation) if orientation > 4 else Header(height, width, orientation)


def orientation_of(data: bytes | memoryview) -> int:
    """Return the EXIF orientation of an encoded image, 1 if it has none or is no image."""
    try:
        return _orientation(_open(data))
    except MemoryError:
        raise
    except Exception:  # for damaged bytes, Pillow's readers raise arbitrary exceptions; decoding reports them
        return UPRIGHT


def decode(data: bytes | memoryview, orientation: int = UPRIGHT) -> np.ndarray:
    """Return a fully decoded image as RGB.

    Of 16 bits a channel the upper eight are kept; of an animation, the first image.

    Args:
        data: The encoded file (JPEG, PNG, BMP, WebP, TIFF, PPM, GIF, JPEG 2000 or, with Pillow 11.3, AVIF).
        orientation: EXIF orientation, by which the pixels are turned; see `orientation_of`. fast-reid turns images so,
            TransReID does not.

    Returns:
        uint8 (H, W, 3).

    Raises:
        BadImageError: The bytes are empty, truncated or not an image, or the image has more than `MAX_PIXELS`. It is a
            ValueError.
    """
    try:
        pixels = _pixels(_open(data))
    except MemoryError:
        raise
    except Exception as error:  # for damaged bytes, Pillow's readers raise arbitrary exceptions
        raise _bad(error, data) from error
    return turned(pixels, orientation)


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image that is open in Pillow, uint8 (H, W, 3), turned as `decode` turns those of a file.

    Raises:
        BadImageError: See `decode`.
    """
    try:
        if 0 in image.size:
            raise BadImageError("zero-size")
        _check(image)
        return turned(_pixels(image), _orientation(image))
    except MemoryError:
        raise
    except Exception as error:  # for damaged bytes, Pillow's readers raise arbitrary exceptions
        raise _bad(error, b"") from error


def _pixels(image: Image.Image) -> np.ndarray:
    bits = _bits(image)
    deep = image.mode.startswith("I;16") or _is_deep_pgm(image)
    image.load()
    if deep:
        grey = (np.asarray(image).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _is_deep_pgm(image: Image.Image) -> bool:
    """Return whether this is a PGM of more than 8 bits; Pillow stretches its values to 16 bits, in mode I."""
    return image.format == "PPM" and image.mode == "I"


def _bits(image: Image.Image) -> int:
    """Return the bits of a sample of an image of mode I;16: Pillow does not stretch those of a TIFF of 12 bits."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16
    found = image.tag_v2.get(ExifTags.Base.BitsPerSample, (16,))
    return found[0] if found[0] in range(8, 17) else 16


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image (H, W, C) as its EXIF orientation says that it is shown; (W, H, C) if that is above 4."""
    if orientation == UPRIGHT:
        return pixels
    rows, columns = _DIRECTIONS[orientation]
    flipped = pixels[::rows, ::columns]
    return np.ascontiguousarray(flipped.transpose(1, 0, 2) if orientation > 4 else flipped)


_DIRECTIONS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}
"""Direction in which the stored rows and columns are read, by EXIF orientation; above 4 they then change places."""
