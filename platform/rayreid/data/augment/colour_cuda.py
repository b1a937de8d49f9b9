"""Colour operations on a GPU: one Triton program applies all of them to an image, with the formulas of `colour`.

Images are (N, 3, H, W) float32 in [0, 1].
"""

from collections.abc import Sequence

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from rayreid.data.augment.upload import upload

_BLOCK = 1024  # number of pixels that are processed at a time


@triton.jit
def _unit(x):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _luma(red, green, blue):  # type: ignore[no-untyped-def]
    return 0.2989 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _channel(hue, offset, chroma, low):  # type: ignore[no-untyped-def]
    turned = hue + offset
    turned = turned - 6 * tl.floor(turned / 6)
    return low + chroma * _unit(tl.abs(turned - 3) - 1)


@triton.jit
def _operate(operation, factor, mean, red, green, blue):  # type: ignore[no-untyped-def]
    """Return the pixels after brightness, contrast (to `mean`), saturation or hue; other numbers change nothing."""
    if operation == 0:
        red, green, blue = _unit(red * factor), _unit(green * factor), _unit(blue * factor)
    if operation == 1:
        level = mean * (1 - factor)
        red, green, blue = _unit(red * factor + level), _unit(green * factor + level), _unit(blue * factor + level)
    if operation == 2:
        grey = _luma(red, green, blue) * (1 - factor)
        red, green, blue = _unit(red * factor + grey), _unit(green * factor + grey), _unit(blue * factor + grey)
    if operation == 3:
        high, low = tl.maximum(tl.maximum(red, green), blue), tl.minimum(tl.minimum(red, green), blue)
        chroma = high - low
        sixth = 1 / tl.maximum(chroma, 1e-12)
        hue = tl.where(
            high == red,
            (green - blue) * sixth,
            tl.where(high == green, (blue - red) * sixth + 2, (red - green) * sixth + 4),
        )
        hue += 6 * factor
        red, green, blue = (
            _channel(hue, 0.0, chroma, low),
            _channel(hue, 4.0, chroma, low),
            _channel(hue, 2.0, chroma, low),
        )
    return red, green, blue


@triton.jit
def _jitter(images, factors, order, grey, pixels, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Apply colour jitter in each image's own order, then grayscale."""
    image = tl.program_id(0)
    plane = images + image.to(tl.int64) * 3 * pixels
    own = order + image * 4
    first, second, third, fourth = tl.load(own), tl.load(own + 1), tl.load(own + 2), tl.load(own + 3)
    factors += image * 4
    one = tl.load(factors + tl.maximum(first, 0))
    two = tl.load(factors + tl.maximum(second, 0))
    three = tl.load(factors + tl.maximum(third, 0))
    four = tl.load(factors + tl.maximum(fourth, 0))
    turns_grey = tl.load(grey + image) != 0
    # Contrast needs the mean luma after the operations before it, so these are computed twice.
    total = 0.0
    if (first == 1) | (second == 1) | (third == 1) | (fourth == 1):
        sums = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, pixels, BLOCK):
            place = start + tl.arange(0, BLOCK)
            kept = place < pixels
            red = tl.load(plane + place, kept, 0.0)
            green = tl.load(plane + pixels + place, kept, 0.0)
            blue = tl.load(plane + 2 * pixels + place, kept, 0.0)
            if first != 1:
                red, green, blue = _operate(first, one, 0.0, red, green, blue)
                if second != 1:
                    red, green, blue = _operate(second, two, 0.0, red, green, blue)
                    if third != 1:
                        red, green, blue = _operate(third, three, 0.0, red, green, blue)
            sums += tl.where(kept, _luma(red, green, blue), 0.0)
        total = tl.sum(sums)
    mean = total / pixels
    for start in range(0, pixels, BLOCK):
        place = start + tl.arange(0, BLOCK)
        kept = place < pixels
        red = tl.load(plane + place, kept, 0.0)
        green = tl.load(plane + pixels + place, kept, 0.0)
        blue = tl.load(plane + 2 * pixels + place, kept, 0.0)
        red, green, blue = _operate(first, one, mean, red, green, blue)
        red, green, blue = _operate(second, two, mean, red, green, blue)
        red, green, blue = _operate(third, three, mean, red, green, blue)
        red, green, blue = _operate(fourth, four, mean, red, green, blue)
        level = _luma(red, green, blue)
        tl.store(plane + place, tl.where(turns_grey, level, red), kept)
        tl.store(plane + pixels + place, tl.where(turns_grey, level, green), kept)
        tl.store(plane + 2 * pixels + place, tl.where(turns_grey, level, blue), kept)


@triton.jit
def _finish(images, solarized, pixels, mean0, mean1, mean2, scale0, scale1, scale2, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Solarize the chosen images, then compute (x - mean) · scale per channel."""
    image, channel = tl.program_id(0), tl.program_id(1)
    place = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    there = images + (image.to(tl.int64) * 3 + channel) * pixels + place
    values = tl.load(there, place < pixels, 0.0)
    inverted = (tl.load(solarized + image) != 0) & (values >= 128 / 255)
    values = tl.where(inverted, 1 - values, values)
    mean = tl.where(channel == 0, mean0, tl.where(channel == 1, mean1, mean2))
    scale = tl.where(channel == 0, scale0, tl.where(channel == 1, scale1, scale2))
    tl.store(there, (values - mean) * scale, place < pixels)


def jitter_(images: Tensor, factors: np.ndarray, order: np.ndarray, grey: np.ndarray) -> None:
    """Apply colour jitter and grayscale in place.

    Args:
        images: Images (N, 3, H, W), float32 in [0, 1].
        factors: Factors of brightness, contrast, saturation and hue, (N, 4).
        order: Operations as indices into these factors, first to last, (N, 4); -1 for none.
        grey: Whether each image becomes grey, bool (N,).
    """
    there = upload([factors.astype(np.float32), order.astype(np.int32), grey.astype(np.int32)], images.device)
    pixels = images.shape[2] * images.shape[3]
    _jitter[(len(images),)](images, *there, pixels, min(_BLOCK, triton.next_power_of_2(pixels)))


def finish_(images: Tensor, solarized: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> None:
    """Solarize the chosen images (N,), then normalise all images, in place."""
    (there,) = upload([solarized.astype(np.int32)], images.device)
    pixels = images.shape[2] * images.shape[3]
    block = min(_BLOCK, triton.next_power_of_2(pixels))
    grid = (len(images), 3, triton.cdiv(pixels, block))
    _finish[grid](images, there, pixels, *mean, *(1 / s for s in std), block)
