"""Resized crops and blurs on a CPU: compiled loops over one image at a time, which stays in the core's cache.

The results are those of `rayreid.data.augment.resample`, which uses matrix products because they suit a GPU. Images are
(N, 3, H, W) float32 in [0, 1]. The loops release the interpreter lock and use only the calling thread.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from rayreid.compiled_loops import compiled
from rayreid.data.batch import ImageBatch

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

# Numba's cache does not see changes of functions in other files, so compiled code only calls functions of its own file.
fast: Any = compiled(fastmath=True, error_model="numpy")

_BLOCK = 2048  # number of floats of a blur that are processed together, so that they stay in the innermost cache
_STRIP = 16  # number of columns that are turned into rows together: one cache line of floats


class Columns(NamedTuple):
    """Images stored column by column, so that loops over a column run over adjacent bytes.

    Attributes:
        pixels: uint8, flat. Image b is (3, lines[b], strides[b]) from starts[b] on: channels, columns, rows. Behind
            columns and rows there is a margin with arbitrary content.
        starts: int64 (B,).
        lines: int64 (B,).
        strides: int64 (B,).
    """

    pixels: npt.NDArray[np.uint8]
    starts: Integers
    lines: Integers
    strides: Integers


def pixel_columns(batch: ImageBatch) -> Columns:
    """Return the batch's images column by column."""
    lines, strides = batch.widths + 3, batch.heights + _STRIP
    ends = np.cumsum(3 * lines * strides)
    starts = ends - 3 * lines * strides
    pixels = np.empty(int(ends[-1]), np.uint8)
    for number, (start, end, height, width) in enumerate(zip(starts, ends, batch.heights, batch.widths, strict=True)):
        block = torch.from_numpy(pixels[start:end].reshape(3, lines[number], strides[number]))
        block[:, :width, :height] = batch.image(number).permute(2, 1, 0)
    return Columns(pixels, starts, lines, strides)


@fast
def resized_crops(
    columns: Columns,
    image: Integers,
    tops: Integers,
    lefts: Integers,
    heights: Integers,
    widths: Integers,
    flip: npt.NDArray[np.bool_],
    down: Integers,
    right: Integers,
    bicubic: bool,
    out: Floats,
) -> None:
    """Resize crops of images as `resample.resize_matrices` does (anti-aliased), and clamp them to [0, 1].

    Args:
        columns: The images, from `pixel_columns`.
        image: (N,), the image that each crop is taken from.
        tops: (N,), first row of each crop.
        lefts: (N,), first column of each crop.
        heights: (N,), in source pixels.
        widths: (N,), in source pixels.
        flip: (N,), whether the crop is mirrored.
        down: (N,); output row o shows row o + down of the resized crop. Rows beyond its ends are black.
        right: (N,), the same for columns, after the flip.
        bicubic: Whether the interpolation is bicubic; otherwise it is bilinear.
        out: (N, 3, h, w), written.
    """
    N, _, h, w = out.shape
    taps = int(4 * max(1.0, heights.max() / h, widths.max() / w)) + 2
    first, count = np.empty(max(h, w), np.int64), np.empty(max(h, w), np.int64)
    weights = np.empty((max(h, w), taps), np.float32)
    strip = np.empty((_STRIP, heights.max() + _STRIP), np.float32)
    narrow = np.zeros((heights.max() + 3, 3 * w), np.float32)
    line = np.empty(3 * w, np.float32)
    for n in range(N):
        height, width = heights[n], widths[n]
        lines, stride = columns.lines[image[n]], columns.strides[image[n]]
        whole = -(-height // _STRIP) * _STRIP  # rounded up: the leftovers of vectors are slow, surplus rows are not
        _resize_weights(width, w, bicubic, flip[n], right[n], 1 / 255, first, count, weights)
        for c in range(3):
            start = columns.starts[image[n]] + c * lines * stride
            plane = columns.pixels[start : start + lines * stride].reshape(lines, stride)
            for x in range(0, w, _STRIP):
                some = min(_STRIP, w - x)
                for j in range(some):
                    begin = lefts[n] + first[x + j]
                    _weigh(plane, begin, count[x + j], weights[x + j], tops[n], strip[j, :whole])
                for y in range(height):
                    row = narrow[y, c * w + x : c * w + x + some]
                    for j in range(some):
                        row[j] = strip[j, y]
        _resize_weights(height, h, bicubic, False, down[n], 1.0, first, count, weights)
        for y in range(h):
            _weigh(narrow, first[y], count[y], weights[y], 0, line)
            for c in range(3):
                row, values = out[n, c, y], line[c * w : (c + 1) * w]
                for x in range(w):
                    row[x] = min(max(values[x], np.float32(0)), np.float32(1))


@fast
def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2:
        return ((2.5 - 0.5 * x) * x - 4) * x + 2
    return 0.0


@fast
def _resize_weights(
    length: int,
    size: int,
    bicubic: bool,
    flip: bool,
    shift: int,
    gain: float,
    first: Integers,
    count: Integers,
    weights: Floats,
) -> None:
    """Compute the weights that resize a line of `length` pixels to `size`: `count` per output, from `first` on."""
    scale = length / size
    stretch = max(scale, 1.0)
    reach = 2 * stretch if bicubic else stretch
    for place in range(size):
        shown = place + shift
        pixel = size - 1 - shown if flip else shown
        centre = (pixel + 0.5) * scale
        low, high = max(0, int(centre - reach + 0.5)), min(length, int(centre + reach + 0.5))
        if shown < 0 or shown >= size:
            low, high = 0, 0
        first[place], count[place] = low, high - low
        total = 0.0
        for k in range(high - low):
            distance = (low + k + 0.5 - centre) / stretch
            weight = _cubic(distance) if bicubic else max(0.0, 1.0 - abs(distance))
            weights[place, k] = weight
            total += weight
        for k in range(high - low):
            weights[place, k] *= gain / total
        for k in range(high - low, 4):
            weights[place, k] = 0


@fast
def _weigh(lines: Any, first: int, count: int, weights: Floats, start: int, out: Floats) -> None:
    """Write the weighted sum of `count` lines from `first` on, each read from `start` on.

    The first four are added together, so their sum never leaves the registers. If there are fewer, the others have zero
    weight.
    """
    stop = start + out.size
    one, two = lines[first, start:stop], lines[first + 1, start:stop]
    three, four = lines[first + 2, start:stop], lines[first + 3, start:stop]
    a, b, c, d = weights[0], weights[1], weights[2], weights[3]
    for i in range(out.size):
        out[i] = (a * one[i] + b * two[i]) + (c * three[i] + d * four[i])
    for k in range(4, count):
        line, weight = lines[first + k, start:stop], weights[k]
        for i in range(out.size):
            out[i] += weight * line[i]


@fast
def blur_(images: Floats, radius: npt.NDArray[np.float64], grey: npt.NDArray[np.bool_]) -> None:
    """Apply Pillow's GaussianBlur in place, as `resample.blur` does: three extended box blurs along each axis.

    Args:
        images: (N, 3, H, W).
        radius: (N,), standard deviation of each blur in pixels, 0 for none.
        grey: (N,); only the first channel of these images is blurred.
    """
    N, _, H, W = images.shape
    border = _box(radius.max())[0] + 1
    pitch = W + 2 * border
    inside = slice(border * pitch, (border + H) * pitch)
    one, other = np.zeros((H + 2 * border, pitch), np.float32), np.zeros((H + 2 * border, pitch), np.float32)
    for n in range(N):
        if radius[n] <= 0:
            continue
        whole, part = _box(radius[n])
        for c in range(1 if grey[n] else 3):
            for y in range(H):
                _copy(images[n, c, y], one[border + y, border : border + W])
            for _ in range(3):
                one[:border], one[border + H :] = one[border], one[border + H - 1]
                _box_blur(one.reshape(-1), other.reshape(-1), inside, pitch, whole, part)
                one, other = other, one
            for _ in range(3):
                for y in range(border, border + H):
                    one[y, :border], one[y, border + W :] = one[y, border], one[y, border + W - 1]
                _box_blur(one.reshape(-1), other.reshape(-1), inside, 1, whole, part)
                one, other = other, one
            for y in range(H):
                _copy(one[border + y, border : border + W], images[n, c, y])


@fast
def _copy(values: Floats, out: Floats) -> None:
    for i in range(out.size):
        out[i] = values[i]


@fast
def _box(radius: float) -> tuple[int, float]:
    """Return the whole and fractional part of `resample.gaussian_box_radius`."""
    variance = radius * radius / 3
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return int(whole), part / (6 * (variance - (whole + 1) ** 2))


@fast
def _box_blur(values: Floats, out: Floats, inside: slice, step: int, whole: int, part: float) -> None:
    """Apply an extended box blur to neighbours `step` apart: `whole` full ones and one of weight `part` per side."""
    weight = np.float32(1 / (2 * (whole + part) + 1))
    end_weight = np.float32(part * weight)
    reach = (whole + 1) * step
    for low in range(inside.start, inside.stop, _BLOCK):
        high = min(low + _BLOCK, inside.stop)
        target, centre = out[low:high], values[low:high]
        before, after = values[low - reach : high - reach], values[low + reach : high + reach]
        for i in range(target.size):
            target[i] = weight * centre[i] + end_weight * (before[i] + after[i])
        for k in range(1, whole + 1):
            before, after = values[low - k * step : high - k * step], values[low + k * step : high + k * step]
            for i in range(target.size):
                target[i] += weight * (before[i] + after[i])
