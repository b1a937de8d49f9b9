"""Cheap measures of the quality of an image, from its pixels and its encoded bytes alone, without a network.

Luma is that of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, in grey levels from 0 to 255. A measure that an image does
not have is NaN. All measures of an image that cannot be decoded are NaN in a table.
"""

from collections.abc import Callable
from itertools import takewhile

import numpy as np

UNIFORM_LEVELS = 16
"""Largest difference from the colour of a band, in grey levels: what a JPEG of quality 75 leaves of a plain area."""

UNIFORM_SHARE = 0.98
"""Share of the pixels of a row or column that must lie within `UNIFORM_LEVELS`: one of the 64 of a row may differ."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# ITU-T T.81, table K.1: the quantisation of luminance that the Independent JPEG Group's encoder scales.
_STANDARD = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61),
        *(12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56),
        *(14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77),
        *(24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101),
        *(72, 92, 95, 98, 112, 100, 103, 99),
    ]
)
_COEFFICIENTS = len(_STANDARD)
_DQT, _SOS = 0xDB, 0xDA  # markers: quantisation tables, start of scan
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length


def measures_of(pixels: np.ndarray, encoded: bytes | memoryview) -> np.ndarray:
    """Return the measures of a decoded image, float32 (M,) in the order of `MEASURES`.

    Args:
        pixels: uint8 (H, W, 3), RGB.
        encoded: The file from which they were decoded.
    """
    luma = pixels @ _LUMA
    values = [measure(pixels, luma) for measure in _OF_PIXELS.values()]
    return np.array([*values, jpeg_quality(encoded)], np.float32)


def height(pixels: np.ndarray, luma: np.ndarray) -> float:
    """Return the height in pixels."""
    return float(pixels.shape[0])


def aspect(pixels: np.ndarray, luma: np.ndarray) -> float:
    """Return height divided by width."""
    return pixels.shape[0] / pixels.shape[1]


def sharpness(pixels: np.ndarray, luma: np.ndarray) -> float:
    """Return the variance of the Laplacian of the luma, in grey levels squared; NaN for a side of less than 3 pixels.

    The Laplacian has four neighbours and is taken at the size of the crop, without its outermost pixels (Pech-Pacheco
    et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000). A crop that was enlarged before it was stored
    is as blurred as it looks. The measure grows with the square of the contrast.
    """
    if min(luma.shape) < 3:
        return float("nan")
    middle = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
    return float(laplacian.var(dtype=np.float64))


def brightness(pixels: np.ndarray, luma: np.ndarray) -> float:
    """Return the mean of all pixels and channels, in [0, 1], as the diagnosis of scores has it (`meaning`)."""
    return float(pixels.mean()) / 255


def contrast(pixels: np.ndarray, luma: np.ndarray) -> float:
    """Return the standard deviation of the luma divided by 255, in [0, 0.5].

    It is the RMS contrast of Peli, "Contrast in complex images", JOSA A 7 (1990).
    """
    return float(luma.std(dtype=np.float64)) / 255


def saturation(pixels: np.ndarray, luma: np.ndarray) -> float:
    """Return the mean saturation of the HSV model, (max − min) / max over the channels, in [0, 1]; 0 for black.

    Source: Smith, "Color gamut transform pairs", SIGGRAPH 1978.
    """
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    most = np.maximum(np.maximum(red, green), blue)
    least = np.minimum(np.minimum(red, green), blue)
    return float(((most - least) / np.maximum(most, 1, dtype=np.float32)).mean(dtype=np.float64))


def border(pixels: np.ndarray, luma: np.ndarray) -> float:
    """Return the share of the image's area in uniform bands along its edges, in [0, 1]; 1 if all of it is uniform.

    A band reaches from an edge as far as its rows (or columns) are uniform: at least `UNIFORM_SHARE` of the pixels
    of each differ from the mean colour of the outermost one by at most `UNIFORM_LEVELS` in every channel. The bands at
    the top and bottom are found first, those at the sides in what is left. They are letterboxes, padding, and plain
    walls up to the person; the definition is this project's own.
    """
    top = _band(pixels)
    bottom = _band(pixels[top:][::-1])
    left_over = pixels[top : len(pixels) - bottom].transpose(1, 0, 2)
    left = _band(left_over) if left_over.size else 0
    right = _band(left_over[left:][::-1]) if left_over.size else 0
    inner = left_over.shape[1] * (len(left_over) - left - right)
    return 1 - inner / (pixels.shape[0] * pixels.shape[1])


def _band(lines: np.ndarray) -> int:
    """Return how many of the first lines (n, length, 3) form a uniform band."""
    if not len(lines):
        return 0
    colour = lines[0].mean(axis=0, dtype=np.float32)
    low, high = colour - UNIFORM_LEVELS, colour + UNIFORM_LEVELS

    def uniform(line: np.ndarray) -> bool:
        within = ((line >= low) & (line <= high)).all(axis=-1)
        return int(np.count_nonzero(within)) >= UNIFORM_SHARE * len(line)

    return sum(1 for _ in takewhile(uniform, lines))


def jpeg_quality(encoded: bytes | memoryview) -> float:
    """Return the quality, 1 to 100, of the Independent JPEG Group's encoder whose luminance table is closest.

    Compared is the sum of the 64 divisors of the first quantisation table (ITU-T T.81, B.2.4.1), so that tables of
    other encoders have a quality, too. The divisors are those of the last encoding: of a file that was compressed
    strongly and saved again at a high quality, they tell the latter. NaN for what is no JPEG.
    """
    table = _luminance_table(memoryview(encoded).cast("B"))  # Arrow's buffers have signed bytes
    if table is None:
        return float("nan")
    return float(_QUALITIES[np.argmin(np.abs(_TABLE_SUMS - table.sum()))])


def _luminance_table(encoded: memoryview) -> np.ndarray | None:
    """Return the divisors of quantisation table 0 in the order of the file, int64 (64,); None if there is none."""
    if bytes(encoded[:2]) != b"\xff\xd8":
        return None
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF or marker in _BARE:  # a byte that fills, or a marker that stands alone
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if marker == _SOS:
            break
        if marker == _DQT and (table := _table_of_segment(bytes(encoded[at + 4 : end]))) is not None:
            return table
        at = end
    return None


def _table_of_segment(segment: bytes) -> np.ndarray | None:
    """Return table 0 of a DQT segment, which holds one table or several; None if it is not among them."""
    at = 0
    while at < len(segment):
        wide, number = divmod(segment[at], 16)
        kind = np.dtype(">u2" if wide else "u1")
        end = at + 1 + _COEFFICIENTS * kind.itemsize
        if number == 0 and end <= len(segment):
            return np.frombuffer(segment[at + 1 : end], kind).astype(np.int64)
        at = end
    return None


def _table_sums() -> np.ndarray:
    """Return the sum of the luminance table of each quality of `_QUALITIES`, as `jpeg_set_quality` computes it."""
    scales = np.where(_QUALITIES < 50, 5000 // _QUALITIES, 200 - 2 * _QUALITIES)
    return np.clip((scales[:, None] * _STANDARD + 50) // 100, 1, 255).sum(axis=1)


_QUALITIES = np.arange(1, 101)
_TABLE_SUMS = _table_sums()

_OF_PIXELS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "height": height,
    "aspect": aspect,
    "sharpness": sharpness,
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "border": border,
}

MEASURES = (*_OF_PIXELS, "jpeg_quality")
"""Names of the measures, in the order of the columns."""

RANGES = {
    "height": (1, 32_767),
    "aspect": (0, 32_767),
    "sharpness": (0, 1_040_400),
    "brightness": (0, 1),
    "contrast": (0, 0.5),
    "saturation": (0, 1),
    "border": (0, 1),
    "jpeg_quality": (1, 100),
}
"""Smallest and largest value that a measure can have."""
