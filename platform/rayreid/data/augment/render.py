"""Rendering of crops from pixels and parameters: whole batches on a GPU, one crop after another on a CPU.

Where a GPU runs no Triton kernels, `render_batched` takes their place. All ways apply the same
operations in the same order to float values in [0, 1], clamped wherever 8-bit images would be, and agree to single
precision. Crops are float32 (N, 3, h, w).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rayreid.data.augment import colour, colour_cpu, resample, resample_cpu
from rayreid.data.augment.crops import Crops
from rayreid.data.augment.reid_transforms import normalise_
from rayreid.data.batch import ImageBatch

_CHUNK_PIXELS = 1 << 15  # pixels of the crops that a CPU processes together: 384 KiB, which stay in a core's own cache


def render_compiled(
    columns: resample_cpu.Columns, crops: Crops, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Return crops made by the calling thread, which does not hold the interpreter lock while it works.

    Args:
        columns: The batch's pixels, from `resample_cpu.pixel_columns`.
        crops: Parameters of the crops.
        size: Height and width of the crops.
        mean: Value to subtract, per channel.
        std: Value to divide by, per channel.
    """
    N = len(crops)
    # NumPy asks for huge pages, torch does not. With small pages, their first touch costs as much as everything else.
    out = np.empty((N, 3, size[0] * size[1]), np.float32)
    # The crops of one image follow each other, while its columns are still in the cache.
    place = np.argsort(crops.image, kind="stable")
    crops = crops.part(place)
    mean_, scale = np.array(mean, np.float32), np.array([1 / s for s in std], np.float32)
    chunk = max(1, _CHUNK_PIXELS // (size[0] * size[1]))
    space = np.empty((min(chunk, N), 3, *size), np.float32)
    unmoved = np.zeros(len(space), np.int64)
    for start in range(0, N, chunk):
        part = slice(start, start + chunk)
        c = crops.part(part)
        planes = space[: len(c)]
        flat = planes.reshape(len(planes), 3, -1)
        boxes = (c.image, c.tops, c.lefts, c.heights, c.widths, c.flip)
        resample_cpu.resized_crops(columns, *boxes, unmoved[: len(c)], unmoved[: len(c)], True, planes)
        colour_cpu.jitter_(flat, c.factors, c.order)
        colour_cpu.grayscale_(flat, c.grey)
        resample_cpu.blur_(planes, c.radius, c.grey)
        colour_cpu.finish(flat, c.grey, c.solarized, mean_, scale, place[part], out)
    return torch.from_numpy(out).view(N, 3, *size)


def render_fused(
    batch: ImageBatch, crops: Crops, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Return crops made on a CUDA device by a handful of kernels.

    Args:
        batch: The batch of images, on that device.
        crops: Parameters of the crops.
        size: Height and width of the crops.
        mean: Value to subtract, per channel.
        std: Value to divide by, per channel.
    """
    # Nothing else needs Triton.
    from rayreid.data.augment import colour_cuda, resample_cuda

    boxes = (crops.tops, crops.lefts, crops.heights, crops.widths)
    images = resample_cuda.resized(batch, crops.image, boxes, size, flip=crops.flip)
    colour_cuda.jitter_(images, crops.factors, crops.order, crops.grey)
    resample_cuda.blur_(images, crops.radius)
    colour_cuda.finish_(images, crops.solarized, mean, std)
    return images


def render_batched(
    source: Tensor, crops: Crops, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Return crops made all at once on the source's device, in a few large operations.

    Args:
        source: The batch's pixels, from `resample.unit_rows`.
        crops: Parameters of the crops.
        size: Height and width of the crops.
        mean: Value to subtract, per channel.
        std: Value to divide by, per channel.
    """
    device = source.device
    images = _resized(source, crops, size)
    images = colour.jitter(images, torch.from_numpy(crops.factors).to(device), crops.order)
    for chosen, operation in (
        (crops.grey, lambda part, _: colour.grayscale_(part)),
        (crops.radius > 0, resample.blur),
        (crops.solarized, lambda part, _: colour.solarize_(part)),
    ):
        if chosen.any():
            numbers = np.flatnonzero(chosen)
            index = torch.from_numpy(numbers).to(device)
            images.index_copy_(0, index, operation(images.index_select(0, index), crops.radius[numbers]))
    return normalise_(images.transpose(1, 2).contiguous(), mean, std)


def _resized(source: Tensor, crops: Crops, size: tuple[int, int]) -> Tensor:
    """Return the crops' boxes, resized, float32 (N, h, 3, w)."""
    B, H, C, W = source.shape
    # Read only the rows that the crops cover; rows beyond a crop's end get no weight, whatever they contain.
    tallest = int(crops.heights.max())
    line = np.minimum((crops.image * H + crops.tops)[:, None] + np.arange(tallest), B * H - 1)
    lines = source.view(B * H, C * W).index_select(0, torch.from_numpy(line.ravel()).to(source.device))
    top = np.zeros_like(crops.tops)
    rows = resample.resize_matrices(top, crops.heights, tallest, size[0], device=source.device)
    columns = resample.resize_matrices(crops.lefts, crops.widths, W, size[1], flip=crops.flip, device=source.device)
    return resample.apply_separable(lines.view(-1, tallest, C, W), rows, columns).clamp_(0, 1)
