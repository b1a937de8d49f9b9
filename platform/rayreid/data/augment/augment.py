"""Multi-crop augmentation of DINO pre-training: the choice of the crops of a batch of images.

`rayreid.data.augment.render` makes the crops. Every random parameter is a function of (seed, epoch, key, crop); see
`rayreid.data.augment.randomness`. The ReID transforms are in `rayreid.data.augment.reid_transforms` and can be imported
from here.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rayreid.data.augment.crops import Crops, crop_boxes
from rayreid.data.augment.randomness import uniforms
from rayreid.data.augment.reid_transforms import ReIDTest, ReIDTrain
from rayreid.data.augment.render import render_batched, render_compiled, render_fused
from rayreid.data.augment.resample import unit_rows
from rayreid.data.augment.resample_cpu import pixel_columns
from rayreid.data.batch import ImageBatch
from rayreid.devices import runs_triton

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "MultiCrop", "ReIDTest", "ReIDTrain"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Meaning of the draws of a crop.
_TRIES = 10
_BOX = slice(0, 4 * _TRIES)
_FLIP, _JITTERED, _GREY, _BLURRED, _RADIUS, _SOLARIZED = range(_BOX.stop, _BOX.stop + 6)
_FACTORS = slice(_SOLARIZED + 1, _SOLARIZED + 5)
_ORDER = slice(_FACTORS.stop, _FACTORS.stop + 4)
_DRAWS = _ORDER.stop


class MultiCrop:
    """Two global crops and several local crops of every image, augmented as in DINO (Caron et al., ICCV 2021).

    RandomResizedCrop (bicubic, anti-aliased), flip, colour jitter in random order, grayscale, Gaussian blur, solarize
    (second global crop only) and normalisation; the numbers are those of DINO's published code. Images stay float in
    [0, 1] until the normalisation, and are clamped wherever 8-bit images would be.

    Args:
        global_size: Height and width of the two global crops.
        local_size: Height and width of the local crops.
        local_crops: Number of local crops, 0 for none.
        global_scale: Share of the image's area in a global crop.
        local_scale: Share of the image's area in a local crop.
        flip: Probability of mirroring.
        jitter: Strengths of brightness, contrast, saturation and hue. The first three factors are uniform in [1 − x, 1
            + x]; the hue is turned by a share of the circle in [−x, x].
        jitter_probability: Probability of the jitter.
        gray: Probability of grayscale.
        blur: Probabilities of the blur for global crop 1, global crop 2 and local crops.
        blur_radius: Bounds of the blur's standard deviation in pixels of the crop.
        solarize: Probability of inverting values ≥ 128 / 255, in global crop 2.
        mean: Mean per channel, for images in [0, 1].
        std: Standard deviation per channel, for images in [0, 1].
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
        """Return crops of a batch of B images, float32 on the batch's device; a CPU uses only the calling thread.

        Returns:
            [globals (2B, 3, H, W), locals (nB, 3, h, w)], crop-major: the first crop of every image, then the second,
            and so on. Without local crops, only the globals.
        """
        draws_CBD = uniforms(seed, epoch, keys, 2 + self.local_crops, _DRAWS).transpose(1, 0, 2)
        heights, widths = batch.heights, batch.widths
        views = [(slice(0, 2), self.global_size, self.global_scale)]
        if self.local_crops:
            views.append((slice(2, None), self.local_size, self.local_scale))
        device = batch.pixels.device
        if device.type == "cpu":
            render = partial(render_compiled, pixel_columns(batch))
        elif runs_triton(device):
            render = partial(render_fused, batch)
        else:
            render = partial(render_batched, unit_rows(batch.frames()))
        return [
            render(self._drawn(draws_CBD[chosen], chosen, heights, widths, scale), size, self.mean, self.std)
            for chosen, size, scale in views
        ]

    def _drawn(
        self,
        draws_CBD: npt.NDArray[np.float64],
        chosen: slice,
        heights: npt.NDArray[np.int64],
        widths: npt.NDArray[np.int64],
        scale: tuple[float, float],
    ) -> Crops:
        """Return the parameters of the chosen crops, computed from their random numbers."""
        C, B, D = draws_CBD.shape
        draws = draws_CBD.reshape(C * B, D)
        image = np.tile(np.arange(B), C)
        order = np.argsort(draws[:, _ORDER], 1)
        order[draws[:, _JITTERED] >= self.jitter_probability] = -1
        low, high = self.blur_radius
        blurred = draws[:, _BLURRED] < np.repeat(self.blur[chosen], B)
        return Crops(
            image,
            *crop_boxes(draws[:, _BOX], heights[image], widths[image], scale),
            flip=draws[:, _FLIP] < self.flip,
            factors=((2 * draws[:, _FACTORS] - 1) * self.jitter + (1, 1, 1, 0)).astype(np.float32),
            order=order,
            grey=draws[:, _GREY] < self.gray,
            radius=np.where(blurred, low + (high - low) * draws[:, _RADIUS], 0.0),
            solarized=draws[:, _SOLARIZED] < np.repeat(self.solarize[chosen], B),
        )
