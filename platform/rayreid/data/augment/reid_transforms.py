"""Transforms of supervised and unsupervised ReID, for whole batches at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayreid.data.augment.randomness import uniforms
from rayreid.data.augment.resample import apply_separable, resize_matrices, unit_rows
from rayreid.data.augment.resample_cpu import pixel_columns, resized_crops
from rayreid.data.augment.upload import upload
from rayreid.data.batch import ImageBatch
from rayreid.devices import runs_triton

Interpolation = Literal["bicubic", "bilinear"]

# Meaning of the draws of an image.
_FLIP, _TOP, _LEFT, _ERASED, _NOISE = range(5)
_TRIES = 10
_BOX = slice(5, 5 + 4 * _TRIES)
_DRAWS = _BOX.stop


def normalise_(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (images − mean) / std per channel, computed in place, (N, 3, H, W)."""
    for channel, (level, spread) in enumerate(zip(mean, std, strict=True)):
        images[:, channel].sub_(level).mul_(1 / spread)
    return images


class ReIDTrain:
    """The training transform of the field: resize, flip, pad and random crop, normalise, random erasing.

    The numbers are those of TransReID and TransReID-SSL. Random erasing follows timm (one box; Zhong et al., "Random
    erasing data augmentation", AAAI 2020), and comes after the normalisation. Every random parameter is a function of
    (seed, epoch, key).

    Args:
        size: Height and width of the output.
        mean: Mean per channel, for images in [0, 1].
        std: Standard deviation per channel, for images in [0, 1].
        erasing: Probability of random erasing.
        flip: Probability of mirroring.
        padding: Black border in pixels of the output, added before the random crop back to `size`.
        interpolation: Interpolation of the anti-aliased resize.
        erasing_area: Smallest and largest share of the image that is erased.
        erasing_aspect: Smallest and largest height / width of the erased box, whose logarithm is drawn uniformly.
        erasing_fill: Three values for the erased pixels, in the normalised range; None for N(0, 1) noise.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        erasing: float = 0.5,
        flip: float = 0.5,
        padding: int = 10,
        interpolation: Interpolation = "bicubic",
        erasing_area: tuple[float, float] = (0.02, 1 / 3),
        erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3),
        erasing_fill: Sequence[float] | None = None,
    ):
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)
        self.erasing, self.flip, self.padding, self.interpolation = erasing, flip, padding, interpolation
        self.erasing_area, self.erasing_aspect, self.erasing_fill = erasing_area, erasing_aspect, erasing_fill

    def __call__(self, batch: ImageBatch, keys: Sequence[str], epoch: int, seed: int) -> Tensor:
        """Return a transformed batch of B images, float32 (B, 3, H, W) on the batch's device."""
        draws = uniforms(seed, epoch, keys, 1, _DRAWS)[:, 0]
        # Flip, padding and crop are free: they only change columns and rows of the resize matrices.
        places = 2 * self.padding + 1
        images = _resize(
            batch,
            self.size,
            self.interpolation,
            flip=draws[:, _FLIP] < self.flip,
            down=(draws[:, _TOP] * places).astype(np.int64) - self.padding,
            right=(draws[:, _LEFT] * places).astype(np.int64) - self.padding,
        )
        normalise_(images, self.mean, self.std)
        self._erase(images, draws)
        return images

    def _erase(self, images: Tensor, draws: npt.NDArray[np.float64]) -> None:
        H, W = self.size
        area_u, aspect_u, top_u, left_u = np.moveaxis(draws[:, _BOX].reshape(-1, _TRIES, 4), 2, 0)
        area = H * W * (self.erasing_area[0] + (self.erasing_area[1] - self.erasing_area[0]) * area_u)
        low, high = np.log(self.erasing_aspect)
        aspect = np.exp(low + (high - low) * aspect_u)
        heights = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        widths = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = (heights < H) & (widths < W)
        tops = ((H - heights + 1) * top_u).astype(np.int64)
        lefts = ((W - widths + 1) * left_u).astype(np.int64)
        noise = torch.Generator()
        boxes: list[Tensor] = []
        fills: list[np.ndarray] = []
        for image in np.flatnonzero((draws[:, _ERASED] < self.erasing) & fits.any(1)):
            first = fits[image].argmax()
            top, left, height, width = (int(v[image, first]) for v in (tops, lefts, heights, widths))
            boxes.append(images[image, :, top : top + height, left : left + width])
            if self.erasing_fill is None:
                noise.manual_seed(int(draws[image, _NOISE] * 2**53))
                fills.append(torch.randn(3, height, width, generator=noise).numpy())
            else:
                fills.append(np.array(self.erasing_fill, np.float32).reshape(3, 1, 1))
        for box, fill in zip(boxes, upload(fills, images.device), strict=True):
            box.copy_(fill)


class ReIDTest:
    """The test transform of the field: resize (bilinear in TransReID-SSL, anti-aliased like Pillow's) and normalise.

    Args:
        size: Height and width of the output.
        mean: Mean per channel, for images in [0, 1].
        std: Standard deviation per channel, for images in [0, 1].
        interpolation: Interpolation of the anti-aliased resize.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: Interpolation = "bilinear",
    ):
        self.size, self.mean, self.std, self.interpolation = size, tuple(mean), tuple(std), interpolation

    def __call__(self, batch: ImageBatch) -> Tensor:
        """Return a transformed batch of B images, float32 (B, 3, H, W) on the batch's device."""
        return normalise_(_resize(batch, self.size, self.interpolation), self.mean, self.std)


def _resize(
    batch: ImageBatch,
    size: tuple[int, int],
    interpolation: Interpolation,
    flip: npt.NDArray[np.bool_] | None = None,
    down: npt.NDArray[np.int64] | None = None,
    right: npt.NDArray[np.int64] | None = None,
) -> Tensor:
    """Return whole images at `size`, (B, 3, H, W) in [0, 1]; flipped, then shifted up and left by these pixels."""
    B, device = len(batch), batch.pixels.device
    start, number = np.zeros(B, np.int64), np.arange(B)
    if runs_triton(device):
        from rayreid.data.augment import resample_cuda  # nothing else needs Triton

        boxes = (start, start, batch.heights, batch.widths)
        return resample_cuda.resized(batch, number, boxes, size, interpolation, flip, down, right)
    if device.type == "cpu":
        whole = (start, start, batch.heights, batch.widths)
        moved = (np.zeros(B, bool) if flip is None else flip, *(start if s is None else s for s in (down, right)))
        columns, out = pixel_columns(batch), np.empty((B, 3, *size), np.float32)
        bicubic = interpolation == "bicubic"

        def resize(part: slice) -> None:
            resized_crops(columns, number[part], *(v[part] for v in (*whole, *moved)), bicubic, out[part])

        _in_parts(resize, B)
        return torch.from_numpy(out)
    source = unit_rows(batch.frames())
    rows = resize_matrices(start, batch.heights, source.shape[1], size[0], interpolation, shift=down, device=device)
    across = resize_matrices(start, batch.widths, source.shape[3], size[1], interpolation, flip, right, device)
    return apply_separable(source, rows, across).clamp_(0, 1).transpose(1, 2)


def _in_parts(work: Callable[[slice], None], count: int) -> None:
    """Call `work` on all of `count` images, with one part on each of torch's threads."""
    threads = min(torch.get_num_threads(), count)
    bounds = np.linspace(0, count, threads + 1).astype(int).tolist()
    parts = [slice(start, stop) for start, stop in pairwise(bounds)]
    if threads == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))
