"""Multi-crop augmentation of DINO pre-training, for whole batches at once.

Every random parameter is a function of (seed, epoch, key, crop): see `rayreid.data.randomness`. The ReID
transforms stand in `rayreid.data.reid_transforms` and are importable from here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayreid.data.batch import ImageBatch
from rayreid.data.colour import grayscale_, jitter, solarize_
from rayreid.data.randomness import uniforms
from rayreid.data.reid_transforms import ReIDTest, ReIDTrain, normalise_into
from rayreid.data.resample import apply_separable, blur, resize_matrices, unit_rows

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Boxes", "MultiCrop", "ReIDTest", "ReIDTrain", "crop_boxes"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Which draw of a crop decides what.
_TRIES = 10
_BOX = slice(0, 4 * _TRIES)
_FLIP, _JITTERED, _GREY, _BLURRED, _RADIUS, _SOLARIZED = range(_BOX.stop, _BOX.stop + 6)
_FACTORS = slice(_SOLARIZED + 1, _SOLARIZED + 5)
_ORDER = slice(_FACTORS.stop, _FACTORS.stop + 4)
_DRAWS = _ORDER.stop

_CPU_CHUNK_PIXELS = 1 << 19  # crops worked on together on a CPU: 6 MiB, which stay in its cache


class Boxes(NamedTuple):
    """Crop boxes in source pixels, int64 (N,) each."""

    tops: npt.NDArray[np.int64]
    lefts: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]


def crop_boxes(
    draws: npt.NDArray[np.float64],
    heights: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Boxes:
    """Boxes of torchvision's RandomResizedCrop, all tries drawn at once and the first that fits taken.

    Args:
        draws: uniform (N, 4·tries): area, aspect, top, left of each try.
        heights: image heights in pixels (N,).
        widths: image widths in pixels (N,).
        scale: least and greatest share of the image's area.
        ratio: least and greatest aspect, width / height; drawn uniformly in its logarithm. Where no try fits,
            the central box of the nearest aspect within these bounds.
    """
    area_u, aspect_u, top_u, left_u = np.moveaxis(draws.reshape(len(draws), -1, 4), 2, 0)
    H, W = heights[:, None], widths[:, None]
    area = H * W * (scale[0] + (scale[1] - scale[0]) * area_u)
    low, high = np.log(ratio)
    aspect = np.exp(low + (high - low) * aspect_u)
    w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (w > 0) & (w <= W) & (h > 0) & (h <= H)
    top = ((H - h + 1) * top_u).astype(np.int64)
    left = ((W - w + 1) * left_u).astype(np.int64)
    first = fits.argmax(1)[:, None]
    drawn = (np.take_along_axis(values, first, 1)[:, 0] for values in (top, left, h, w))

    central_h = np.minimum(heights, np.rint(widths / ratio[0]).astype(np.int64))
    central_w = np.minimum(widths, np.rint(heights * ratio[1]).astype(np.int64))
    central = ((heights - central_h) // 2, (widths - central_w) // 2, central_h, central_w)
    found = fits.any(1)
    return Boxes(*(np.where(found, a, b) for a, b in zip(drawn, central, strict=True)))


class MultiCrop:
    """Two global and several local crops of every image, augmented as in DINO (Caron et al., ICCV 2021).

    RandomResizedCrop (bicubic, anti-aliased), flip, colour jitter in random order, grayscale, Gaussian blur,
    solarize (second global crop only), normalisation; the numbers are those of DINO's published code. Images
    stay float in [0, 1] until the normalisation, clamped wherever 8-bit images would be.

    Args:
        global_size: height and width of the two global crops.
        local_size: height and width of the local crops.
        local_crops: number of local crops, 0 for none.
        global_scale: share of the image's area in a global crop.
        local_scale: share of the image's area in a local crop.
        flip: probability of the mirror image.
        jitter: strengths of brightness, contrast, saturation and hue; the first three factors are uniform in
            [1 − x, 1 + x], the hue's turn in [−x, x] of the circle.
        jitter_probability: of the jitter.
        gray: probability of grayscale.
        blur: probability of the blur for global crop 1, global crop 2, local crops.
        blur_radius: bounds of the blur's standard deviation in pixels of the crop.
        solarize: probability of inverting values ≥ 128 / 255, in global crop 2.
        mean: per channel, on [0, 1].
        std: per channel, on [0, 1].
    """

    def __init__(
        self,
        global_size: tuple[int, int] = (256, 128),
        local_size: tuple[int, int] = (128, 64),
        local_crops: int = 8,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        flip: float = 0.5,
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1),
        jitter_probability: float = 0.8,
        gray: float = 0.2,
        blur: tuple[float, float, float] = (1.0, 0.1, 0.5),
        blur_radius: tuple[float, float] = (0.1, 2.0),
        solarize: float = 0.2,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        self.global_size, self.local_size = global_size, local_size
        self.global_scale, self.local_scale = global_scale, local_scale
        self.local_crops = local_crops
        self.flip, self.gray, self.jitter_probability = flip, gray, jitter_probability
        self.jitter = np.array(jitter)
        self.blur_radius = blur_radius
        self.mean, self.std = tuple(mean), tuple(std)
        self.blur = np.array([*blur[:2], *[blur[2]] * local_crops])
        self.solarize = np.array([0.0, solarize] + [0.0] * local_crops)

    def __call__(self, batch: ImageBatch, keys: Sequence[str], epoch: int, seed: int) -> list[Tensor]:
        """Crops of a batch of B images, float32 on the batch's device.

        Returns:
            [globals (2B, 3, H, W), locals (nB, 3, h, w)], crop-major: the first crop of every image, then the
            second, and so on. Without local crops only the globals.
        """
        draws_CBD = uniforms(seed, epoch, keys, 2 + self.local_crops, _DRAWS).transpose(1, 0, 2)
        source = unit_rows(batch.pixels)
        sizes = batch.heights.cpu().numpy(), batch.widths.cpu().numpy()
        views = [(slice(0, 2), self.global_size, self.global_scale)]
        if self.local_crops:
            views.append((slice(2, None), self.local_size, self.local_scale))
        outputs = []
        for crops, size, scale in views:
            C, B, D = draws_CBD[crops].shape
            draws = draws_CBD[crops].reshape(C * B, D)
            image = np.tile(np.arange(B), C)
            boxes = crop_boxes(draws[:, _BOX], sizes[0][image], sizes[1][image], scale)
            blurred = draws[:, _BLURRED] < np.repeat(self.blur[crops], B)
            solarized = draws[:, _SOLARIZED] < np.repeat(self.solarize[crops], B)
            out = torch.empty(C * B, 3, *size, device=source.device)
            chunk = C * B if source.is_cuda else max(1, _CPU_CHUNK_PIXELS // (size[0] * size[1]))
            for start in range(0, C * B, chunk):
                part = slice(start, start + chunk)
                rows = self._crop(source, image[part], Boxes(*(v[part] for v in boxes)), draws[part], size)
                rows = self._recolour(rows, draws[part], blurred[part], solarized[part])
                normalise_into(out[part], rows, self.mean, self.std)
            outputs.append(out)
        return outputs

    def _crop(
        self,
        source: Tensor,
        image: npt.NDArray[np.int64],
        boxes: Boxes,
        draws: npt.NDArray[np.float64],
        size: tuple[int, int],
    ) -> Tensor:
        device, flip = source.device, draws[:, _FLIP] < self.flip
        B, H, C, W = source.shape
        # Only the rows that the crops cover; those beyond a crop's end get no weight, whatever they hold.
        tallest = int(boxes.heights.max())
        line = np.minimum((image * H + boxes.tops)[:, None] + np.arange(tallest), B * H - 1)
        lines = source.view(B * H, C * W).index_select(0, torch.from_numpy(line.ravel()).to(device))
        top = np.zeros_like(boxes.tops)
        rows = resize_matrices(top, boxes.heights, tallest, size[0], device=device)
        columns = resize_matrices(boxes.lefts, boxes.widths, W, size[1], flip=flip, device=device)
        return apply_separable(lines.view(-1, tallest, C, W), rows, columns).clamp_(0, 1)

    def _recolour(
        self,
        images: Tensor,
        draws: npt.NDArray[np.float64],
        blurred: npt.NDArray[np.bool_],
        solarized: npt.NDArray[np.bool_],
    ) -> Tensor:
        device = images.device
        factors = (2 * draws[:, _FACTORS] - 1) * self.jitter + (1, 1, 1, 0)
        order = np.argsort(draws[:, _ORDER], 1)
        order[draws[:, _JITTERED] >= self.jitter_probability] = -1
        images = jitter(images, torch.from_numpy(factors).float().to(device), order)
        for chosen, operation in (
            (draws[:, _GREY] < self.gray, lambda part, _: grayscale_(part)),
            (blurred, self._blur),
            (solarized, lambda part, _: solarize_(part)),
        ):
            if chosen.any():
                numbers = np.flatnonzero(chosen)
                index = torch.from_numpy(numbers).to(device)
                images.index_copy_(0, index, operation(images.index_select(0, index), draws[numbers]))
        return images

    def _blur(self, images: Tensor, draws: npt.NDArray[np.float64]) -> Tensor:
        low, high = self.blur_radius
        return blur(images, low + (high - low) * draws[:, _RADIUS])
