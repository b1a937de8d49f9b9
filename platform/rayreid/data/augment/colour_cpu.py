"""Colour operations on a CPU: compiled loops over one image at a time, which stays in the core's cache.

The formulas and results are those of `rayreid.data.augment.colour`. Images are (N, 3, H·W) float32 in [0, 1] and change
in place. The loops release the interpreter lock and use only the calling thread.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rayreid.compiled_loops import compiled

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

# Numba's cache does not see changes of functions in other files, so compiled code only calls functions of its own file.
fast: Any = compiled(fastmath=True, error_model="numpy")

# Single precision: one double-precision number would make everything that it meets twice as wide.
_ZERO, _ONE, _TWO, _THREE, _FOUR, _SIX = (np.float32(number) for number in (0, 1, 2, 3, 4, 6))
_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_TINY = np.float32(1e-12)
_THRESHOLD = np.float32(128 / 255)
_BLOCK = 1024  # number of pixels whose luma is summed in single precision


@fast
def jitter_(images: Floats, factors: Floats, order: npt.NDArray[np.int64]) -> None:
    """Apply colour jitter, with separate factors and a separate order for each image.

    Args:
        images: (N, 3, P).
        factors: (N, 4), of brightness, contrast, saturation and hue.
        order: (N, 4), the operations as indices into these factors, first to last, −1 for none.
    """
    for n in range(len(images)):
        for operation in order[n]:
            if operation == 0:
                _brightness(images[n], factors[n, 0])
            elif operation == 1:
                _contrast(images[n], factors[n, 1])
            elif operation == 2:
                _saturation(images[n], factors[n, 2])
            elif operation == 3:
                _hue(images[n], factors[n, 3])


@fast
def grayscale_(images: Floats, grey: Flags) -> None:
    """Set the first channel of the grey images to the luma; `finish` also uses it for the other two channels."""
    for n in np.flatnonzero(grey):
        red, green, blue = images[n, 0], images[n, 1], images[n, 2]
        for i in range(red.size):
            red[i] = _luma(red[i], green[i], blue[i])


@fast
def finish(
    images: Floats,
    grey: Flags,
    solarized: Flags,
    mean: Floats,
    scale: Floats,
    place: npt.NDArray[np.int64],
    out: Floats,
) -> None:
    """Solarize the marked images, then write (image − mean) · scale.

    Args:
        images: (N, 3, P); only the first channel of grey images is read.
        grey: (N,), whether an image is grey.
        solarized: (N,), whether an image is solarized.
        mean: (3,).
        scale: (3,), one over the standard deviation.
        place: (N,), the position in `out` of each image.
        out: (M, 3, P), written.
    """
    for n in range(len(images)):
        for c in range(3):
            values, target = images[n, 0 if grey[n] else c], out[place[n], c]
            shift, factor = mean[c], scale[c]
            if solarized[n]:
                for i in range(values.size):
                    value = values[i]
                    target[i] = ((_ONE - value if value >= _THRESHOLD else value) - shift) * factor
            else:
                for i in range(values.size):
                    target[i] = (values[i] - shift) * factor


@fast
def _clamp(value: np.float32) -> np.float32:
    return min(max(value, _ZERO), _ONE)


@fast
def _luma(red: np.float32, green: np.float32, blue: np.float32) -> np.float32:
    return _RED * red + _GREEN * green + _BLUE * blue


@fast
def _brightness(image: Floats, factor: np.float32) -> None:
    for c in range(3):
        values = image[c]
        for i in range(values.size):
            values[i] = _clamp(values[i] * factor)


@fast
def _contrast(image: Floats, factor: np.float32) -> None:
    shift = np.float32(_mean_luma(image) * (1 - factor))
    for c in range(3):
        values = image[c]
        for i in range(values.size):
            values[i] = _clamp(values[i] * factor + shift)


@fast
def _mean_luma(image: Floats) -> float:
    total = 0.0
    for low in range(0, image.shape[1], _BLOCK):
        red, green, blue = image[0, low : low + _BLOCK], image[1, low : low + _BLOCK], image[2, low : low + _BLOCK]
        part = _ZERO
        for i in range(red.size):
            part += _luma(red[i], green[i], blue[i])
        total += float(part)
    return total / image.shape[1]


@fast
def _saturation(image: Floats, factor: np.float32) -> None:
    red, green, blue = image[0], image[1], image[2]
    for i in range(red.size):
        shift = (_ONE - factor) * _luma(red[i], green[i], blue[i])
        red[i] = _clamp(red[i] * factor + shift)
        green[i] = _clamp(green[i] * factor + shift)
        blue[i] = _clamp(blue[i] * factor + shift)


@fast
def _hue(image: Floats, factor: np.float32) -> None:
    red, green, blue = image[0], image[1], image[2]
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        high, low = max(r, max(g, b)), min(r, min(g, b))
        chroma = high - low
        # Grey pixels have chroma 0, for which any finite hue will do.
        sixth = _ONE / max(chroma, _TINY)
        from_red, from_green, from_blue = (g - b) * sixth, (b - r) * sixth + _TWO, (r - g) * sixth + _FOUR
        hue = (from_red if high == r else (from_green if high == g else from_blue)) + _SIX * factor
        red[i] = _channel(hue, low, chroma)
        green[i] = _channel(hue + _FOUR, low, chroma)
        blue[i] = _channel(hue + _TWO, low, chroma)


@fast
def _channel(hue: np.float32, low: np.float32, chroma: np.float32) -> np.float32:
    turned = hue - _SIX * np.floor(hue / _SIX)
    return low + chroma * _clamp(abs(turned - _THREE) - _ONE)
