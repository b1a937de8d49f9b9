"""Resizing and blurring with one small matrix per image and axis, applied by batched matrix products.

Images are rows of interleaved channel lines here, (N, H, 3, W) float32 in [0, 1]. In this layout, the products over
rows and over columns both work on views, without a transposed copy in between.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.generic]

_BLOCK = 32  # number of output rows of a blur that are computed together


def _cubic(x: Tensor) -> Tensor:
    """Return Keys' cubic convolution kernel with a = −0.5, as in Pillow; support 2."""
    a = -0.5
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _triangle(x: Tensor) -> Tensor:
    """Return the linear interpolation kernel; support 1."""
    return (1 - x.abs()).clamp_min(0)


_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bicubic": (_cubic, 2.0),
    "bilinear": (_triangle, 1.0),
}


def unit_rows(pixels: Tensor) -> Tensor:
    """Return uint8 images (N, 3, H, W) as float32 (N, H, 3, W) in [0, 1]."""
    return pixels.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def resize_matrices(
    starts: Array,
    lengths: Array,
    source: int,
    size: int,
    interpolation: str = "bicubic",
    flip: Array | None = None,
    shift: Array | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the weights that resize the stretch [start, start + length) of a line to `size` pixels, anti-aliased.

    This is Pillow's resampling (src/libImaging/Resample.c), which torchvision's `antialias=True` follows. When
    shrinking, the kernel is widened by length / size; weights outside the stretch are dropped and the rest sum to one.
    No pixel outside a crop therefore enters it, as if the crop were cut out first.

    Args:
        starts: Integers (N,), first source pixel of each stretch.
        lengths: Integers (N,), length of each stretch in pixels, at least 1.
        source: Length in pixels of the (padded) source line.
        size: Length in pixels of the output line.
        interpolation: "bicubic" or "bilinear".
        flip: bool (N,), whether the output is mirrored.
        shift: Integers (N,); output pixel o shows pixel o + shift of the resized (and flipped) line. Beyond its ends
            the weights are zero, which gives a black border.
        device: Device of the result.

    Returns:
        float32 (N, size, source).
    """
    kernel, support = _KERNELS[interpolation]
    # The longest stretch is known on the host, so the number of taps does not need a synchronisation with the device.
    taps = int(np.ceil(2 * support * max(float(lengths.max()) / size, 1.0))) + 1
    start, length = (torch.from_numpy(v.astype(np.int64)).to(device)[:, None, None] for v in (starts, lengths))
    scale = length.double() / size
    width = scale.clamp_min(1)
    pixel = torch.arange(size, device=device)[None, :, None].expand(len(starts), -1, -1)
    if shift is not None:
        pixel = pixel + torch.from_numpy(shift.astype(np.int64)).to(device)[:, None, None]
    if flip is not None:
        pixel = torch.where(torch.from_numpy(flip).to(device)[:, None, None], size - 1 - pixel, pixel)
    centre = (pixel + 0.5) * scale
    first = (centre - support * width + 0.5).floor().long().clamp_min(0)
    at = first + torch.arange(taps, device=device)
    weights = kernel(((at + 0.5 - centre) / width).float())
    weights = weights.masked_fill_(at >= length, 0)
    weights = weights / weights.sum(2, keepdim=True)
    if shift is not None:
        weights = torch.where((pixel >= 0) & (pixel < size), weights, 0.0)
    dense = torch.zeros(len(starts), size, source, device=device)
    # The taps that the clamp brings together at the last pixel have zero weight.
    return dense.scatter_add_(2, (at + start).clamp_(0, source - 1), weights)


def gaussian_box_radius(radius: Array, passes: int = 3) -> npt.NDArray[np.float64]:
    """Return the fractional radius, in pixels, of the box whose `passes` repetitions have standard deviation `radius`.

    Gwosdek, Grewenig, Bruhn & Weickert, "Theoretical foundations of Gaussian convolution by extended box filtering"
    (SSVM 2011), as in Pillow's `_gaussian_blur_radius`.
    """
    variance = np.asarray(radius, np.float64) ** 2 / passes
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + part / (6 * (variance - (whole + 1) ** 2))


def blur_matrices(radius: Array, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the weights of Pillow's GaussianBlur along a line: three extended box blurs with replicated ends.

    Args:
        radius: (N,), standard deviation of each blur in pixels.
        size: Length of the line in pixels.
        device: Device of the result.

    Returns:
        float32 (N, size, size).
    """
    box = gaussian_box_radius(radius)
    reach = int(box.max()) + 1
    margin = 3 * reach
    # All rows further than `margin` from the ends are shifts of one row, so a line of 2·margin + 1 pixels has all of
    # them.
    short = min(size, 2 * margin + 1)
    box_N = torch.from_numpy(box).to(device)[:, None, None]
    offset = torch.arange(-reach, reach + 1, device=device)
    weights = (box_N + 1 - offset.abs()).clamp_(0, 1) / (2 * box_N + 1)
    at = (torch.arange(short, device=device)[:, None] + offset).clamp_(0, short - 1)
    once = torch.zeros(len(box), short, short, dtype=torch.float64, device=device)
    once.scatter_add_(2, at.expand(len(box), -1, -1), weights.expand(-1, short, -1))
    thrice = (once @ once @ once).float()
    if short == size:
        return thrice
    row = torch.arange(size, device=device)
    alike = torch.where(row < margin, row, (row - size + short).clamp_min(margin))
    column = row[None, :] + (alike - row)[:, None]
    inside = (column >= 0) & (column < short)
    flat = (alike[:, None] * short + column.clamp(0, short - 1)).flatten()
    return thrice.flatten(1).index_select(1, flat).view(-1, size, size).mul_(inside)


def blur(images: Tensor, radius: Array) -> Tensor:
    """Return (N, H, 3, W) images after Pillow's GaussianBlur with standard deviations `radius` (N,), a new tensor."""
    N, H, C, W = images.shape
    rows = blur_matrices(radius, H, images.device)
    columns = rows if H == W else blur_matrices(radius, W, images.device)
    reach = 3 * (int(gaussian_box_radius(radius).max()) + 1)
    source, lines = images.view(N, H, C * W), images.new_empty(N, H, C * W)
    # The matrix is a narrow band: multiplying it block by block skips most of its zeros.
    for first in range(0, H, _BLOCK):
        last, low, high = min(H, first + _BLOCK), max(0, first - reach), min(H, first + _BLOCK + reach)
        torch.bmm(rows[:, first:last, low:high], source[:, low:high], out=lines[:, first:last])
    return torch.bmm(lines.view(N, -1, W), columns.transpose(1, 2)).view(N, H, C, W)


def apply_separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows @ image @ columnsᵀ for every image and channel.

    Args:
        images: float32 (N, H, 3, W), contiguous.
        rows: float32 (N, h, H).
        columns: float32 (N, w, W).

    Returns:
        float32 (N, h, 3, w).
    """
    N, H, C, W = images.shape
    lines = torch.bmm(rows, images.view(N, H, C * W))
    return torch.bmm(lines.view(N, -1, W), columns.transpose(1, 2)).view(N, rows.shape[1], C, columns.shape[1])
