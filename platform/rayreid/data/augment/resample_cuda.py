"""Resized crops and blurs on a GPU: Triton kernels that read the images' bytes without unpacking them first.

The results are those of `rayreid.data.augment.resample`, which uses matrix products; the cost is proportional to the
pixels that a crop covers. Images are (N, 3, H, W) float32 in [0, 1].
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from rayreid.data.augment.resample import Array, gaussian_box_radius
from rayreid.data.augment.upload import upload
from rayreid.data.batch import ImageBatch

_ROWS = 16  # number of image rows that one program processes
_COLUMNS = 128  # largest number of pixels of a row that it processes


@triton.jit
def _weight(x, BICUBIC: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return Keys' cubic kernel with a = -0.5, or the triangle."""
    x = tl.abs(x)
    if BICUBIC:
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((2.5 - 0.5 * x) * x - 4) * x + 2
        return tl.where(x < 1, near, tl.where(x < 2, far, 0.0))
    return tl.maximum(1 - x, 0.0)


@triton.jit
def _place(shown, size, length, BICUBIC: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the first source pixel of output pixels, its signed distance from the centre, and the kernel's stretch."""
    # In float64, so that the product of a pixel's number and a ratio of lengths keeps its digits.
    scale = length.to(tl.float64) / size
    stretch = tl.maximum(scale, 1.0)
    reach = stretch * 2 if BICUBIC else stretch
    centre = (shown.to(tl.float64) + 0.5) * scale
    first = tl.maximum(tl.floor(centre - reach + 0.5), 0.0)
    return first.to(tl.int32), (first + 0.5 - centre).to(tl.float32), stretch.to(tl.float32)


@triton.jit
def _narrow(  # type: ignore[no-untyped-def]
    pixels, boxes, middle, size, BICUBIC: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Resize the rows of each crop's box, and write them to `middle` as (box height, 3, size) per crop."""
    box = boxes + tl.program_id(0) * 8
    height, length = tl.load(box + 2).to(tl.int32), tl.load(box + 3).to(tl.int32)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(1) * ROWS < height:
        stride = tl.load(box + 1).to(tl.int32)
        column = tl.arange(0, WIDTH)
        shown = column + tl.load(box + 6).to(tl.int32)
        pixel = tl.where(tl.load(box + 7) != 0, size - 1 - shown, shown)
        first, distance, stretch = _place(pixel, size, length, BICUBIC)
        visible = (shown >= 0) & (shown < size) & (column < size)
        lines = pixels + tl.load(box) + row[:, None] * stride
        red, green, blue = (tl.zeros((ROWS, WIDTH), tl.float32),) * 3
        total = tl.zeros((WIDTH,), tl.float32)
        taps = ((4 if BICUBIC else 2) * stretch).to(tl.int32) + 2
        for tap in range(taps):
            at = first + tap
            weight = tl.where(at < length, _weight((distance + tap) / stretch, BICUBIC), 0.0)
            total += weight
            here = lines + at[None, :] * 3
            read = (row < height)[:, None] & ((at < length) & visible)[None, :]
            red += weight[None, :] * tl.load(here, read, 0).to(tl.float32)
            green += weight[None, :] * tl.load(here + 1, read, 0).to(tl.float32)
            blue += weight[None, :] * tl.load(here + 2, read, 0).to(tl.float32)
        gain = (1 / (255 * tl.where(total == 0, 1.0, total)))[None, :]  # no gain where nothing is shown
        out = middle + tl.load(box + 4) + row[:, None] * (3 * size) + column[None, :]
        kept = (row < height)[:, None] & (column < size)[None, :]
        tl.store(out, red * gain, kept)
        tl.store(out + size, green * gain, kept)
        tl.store(out + 2 * size, blue * gain, kept)


@triton.jit
def _shorten(  # type: ignore[no-untyped-def]
    middle, boxes, out, size, width, BICUBIC: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Resize the columns of the output of `_narrow`, and write them to `out` (N, 3, size, width), clamped to [0, 1]."""
    crop = tl.program_id(0)
    box = boxes + crop * 8
    length = tl.load(box + 2).to(tl.int32)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    shown = row + tl.load(box + 5).to(tl.int32)
    first, distance, stretch = _place(shown, size, length, BICUBIC)
    visible = (shown >= 0) & (shown < size) & (row < size)
    place = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)  # channel · width + column
    lines = middle + tl.load(box + 4) + place[None, :]
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    taps = ((4 if BICUBIC else 2) * stretch).to(tl.int32) + 2
    for tap in range(taps):
        at = first + tap
        weight = tl.where(at < length, _weight((distance + tap) / stretch, BICUBIC), 0.0)
        total += weight
        read = ((at < length) & visible)[:, None] & (place < 3 * width)[None, :]
        sums += weight[:, None] * tl.load(lines + at[:, None] * (3 * width), read, 0.0)
    values = sums / tl.where(total == 0, 1.0, total)[:, None]
    values = tl.minimum(tl.maximum(values, 0.0), 1.0)
    channel, column = place // width, place % width
    there = out + ((crop * 3 + channel[None, :]) * size + row[:, None]) * width + column[None, :]
    tl.store(there, values, (row < size)[:, None] & (place < 3 * width)[None, :])


def resized(
    batch: ImageBatch,
    image: Array,
    boxes: tuple[Array, Array, Array, Array],
    size: tuple[int, int],
    interpolation: str = "bicubic",
    flip: Array | None = None,
    down: Array | None = None,
    right: Array | None = None,
) -> Tensor:
    """Return boxes of images at one size, float32 (N, 3, h, w), as `resample_cpu.resized_crops` makes them.

    Args:
        batch: The batch of images, on a GPU.
        image: Index of the image from which each crop is taken, (N,).
        boxes: Tops, lefts, heights and widths, (N,) each, in source pixels.
        size: Height and width of the crops, in pixels.
        interpolation: Anti-aliased filter, "bicubic" or "bilinear".
        flip: See `resample_cpu.resized_crops`; (N,).
        down: See `resample_cpu.resized_crops`; (N,).
        right: See `resample_cpu.resized_crops`; (N,).
    """
    device, N = batch.pixels.device, len(image)
    tops, lefts, heights, widths = (values.astype(np.int64) for values in boxes)
    h, w = size
    strides = 3 * batch.widths[image]
    ends = np.cumsum(heights) * (3 * w)
    zeros = np.zeros(N, np.int64)
    table = np.stack(
        [
            batch.offsets[image] + tops * strides + 3 * lefts,
            strides,
            heights,
            widths,
            ends - heights * (3 * w),
            zeros if down is None else down.astype(np.int64),
            zeros if right is None else right.astype(np.int64),
            zeros if flip is None else flip.astype(np.int64),
        ],
        axis=1,
    )
    (there,) = upload([table], device)
    middle = torch.empty(int(ends[-1]), dtype=torch.float32, device=device)
    out = torch.empty(N, 3, h, w, dtype=torch.float32, device=device)
    bicubic = interpolation == "bicubic"
    rows = triton.cdiv(int(heights.max()), _ROWS)
    _narrow[(N, rows)](batch.pixels, there, middle, w, bicubic, _ROWS, triton.next_power_of_2(w))
    wide = min(_COLUMNS, triton.next_power_of_2(3 * w))
    grid = (N, triton.cdiv(h, _ROWS), triton.cdiv(3 * w, wide))
    _shorten[grid](middle, there, out, h, w, bicubic, _ROWS, wide)
    return out


@triton.jit
def _band(  # type: ignore[no-untyped-def]
    source,
    chosen,
    table,
    out,
    chosen_out,
    height,
    width,
    margin,
    short,
    TALL: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Multiply the columns (TALL), or the rows, of images by narrow bands of weights; see `blur_`."""
    number = tl.program_id(0)
    plane_in = source + (tl.load(chosen + number) * 3 + tl.program_id(2)) * height * width
    plane_out = out + (tl.load(chosen_out + number) * 3 + tl.program_id(2)) * height * width
    weights = table + number * short * short
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    kept = (row < height)[:, None] & (column < width)[None, :]
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    if TALL:
        size, place = height, row
    else:
        size, place = width, column
    alike = tl.where(place < margin, place, tl.maximum(place - size + short, margin))
    alike = tl.where(size == short, place, alike)
    inside = place < size
    for tap in range(short):
        weight = tl.load(weights + alike * short + tap, inside, 0.0)
        at = place - alike + tap
        if TALL:
            values = tl.load(plane_in + at[:, None] * width + column[None, :], kept & (at < size)[:, None], 0.0)
            sums += weight[:, None] * values
        else:
            values = tl.load(plane_in + row[:, None] * width + at[None, :], kept & (at < size)[None, :], 0.0)
            sums += weight[None, :] * values
    tl.store(plane_out + row[:, None] * width + column[None, :], sums, kept)


def blur_(images: Tensor, radius: np.ndarray) -> None:
    """Apply Pillow's GaussianBlur in place to the images (N, 3, H, W) with a `radius` (N,) above 0.

    The radius is the standard deviation in pixels.
    """
    chosen = np.flatnonzero(radius > 0)
    if not len(chosen):
        return
    box = gaussian_box_radius(radius[chosen])
    numbers, places, box_there = upload([chosen, np.arange(len(chosen)), box], images.device)
    margin = 3 * (int(box.max()) + 1)
    _, _, H, W = images.shape
    between = torch.empty(len(chosen), 3, H, W, dtype=torch.float32, device=images.device)
    grid = (len(chosen), triton.cdiv(H, _ROWS), 3)
    wide = triton.next_power_of_2(W)
    tables: dict[int, Tensor] = {}
    for tall, size in ((True, H), (False, W)):
        short = min(size, 2 * margin + 1)
        if short not in tables:
            tables[short] = _thrice(box_there, margin // 3, short)
        table = tables[short]
        ends = (images, numbers, table, between, places) if tall else (between, places, table, images, numbers)
        _band[grid](*ends, H, W, margin, short, tall, _ROWS, wide)


def _thrice(box: Tensor, reach: int, short: int) -> Tensor:
    """Return three extended box blurs of a line of `short` pixels as one matrix, float32 (N, short, short)."""
    box_N = box[:, None, None]
    offset = torch.arange(-reach, reach + 1, device=box.device)
    weights = (box_N + 1 - offset.abs()).clamp_(0, 1) / (2 * box_N + 1)
    at = (torch.arange(short, device=box.device)[:, None] + offset).clamp_(0, short - 1)
    once = torch.zeros(len(box), short, short, dtype=torch.float64, device=box.device)
    once.scatter_add_(2, at.expand(len(box), -1, -1), weights.expand(-1, short, -1))
    return (once @ once @ once).float()
