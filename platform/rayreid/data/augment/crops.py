"""The parameters of each crop of a batch (boxes, colours, blurs), which are drawn before any pixel is touched."""

from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Boxes(NamedTuple):
    """Crop boxes in source pixels, int64 (N,) each."""

    tops: Integers
    lefts: Integers
    heights: Integers
    widths: Integers


@dataclass(frozen=True)
class Crops:
    """The parameters of N crops.

    Attributes:
        image: (N,), position in the batch of the image that each crop is taken from.
        tops: (N,), top of each crop's box in source pixels.
        lefts: (N,), left edge of the box in source pixels.
        heights: (N,), height of the box in source pixels.
        widths: (N,), width of the box in source pixels.
        flip: (N,), whether the crop is mirrored.
        factors: float32 (N, 4), of brightness, contrast, saturation and hue (`rayreid.data.augment.colour.JITTER`).
        order: (N, 4), these operations as indices into the factors, first to last; −1 for none.
        grey: (N,), whether the crop is turned to grey.
        radius: float64 (N,), the blur's standard deviation in pixels of the crop; 0 for none.
        solarized: (N,), whether the crop is solarized.
    """

    image: Integers
    tops: Integers
    lefts: Integers
    heights: Integers
    widths: Integers
    flip: Flags
    factors: npt.NDArray[np.float32]
    order: Integers
    grey: Flags
    radius: npt.NDArray[np.float64]
    solarized: Flags

    def __len__(self) -> int:
        return len(self.image)

    def part(self, chosen: slice | Integers) -> Self:
        """Return some of the crops."""
        return type(self)(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def crop_boxes(
    draws: npt.NDArray[np.float64],
    heights: Integers,
    widths: Integers,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Boxes:
    """Return the boxes of torchvision's RandomResizedCrop.

    All tries are drawn at once, and the first that fits is taken.

    Args:
        draws: Uniform (N, 4·tries): area, aspect, top and left of each try.
        heights: Image heights in pixels (N,).
        widths: Image widths in pixels (N,).
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest aspect, width / height, whose logarithm is drawn uniformly. If no try fits, the
            result is the central box with the nearest aspect within these bounds.
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
