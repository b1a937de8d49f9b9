"""Colour operations on batches, each image with its own parameter; all work in place.

Images are (N, H, 3, W) float32 in [0, 1], the layout of `rayreid.data.augment.resample`. The formulas, and the clamping
of the results to [0, 1], are those of torchvision (`transforms.functional` on float tensors). A factor is a float32
tensor (N,).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def _per_image(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def luma(images: Tensor) -> Tensor:
    """Return the ITU-R 601 luma (N, H, 1, W): 0.2989 R + 0.587 G + 0.114 B, with torchvision's weights."""
    red, green, blue = images.split(1, dim=2)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def brightness_(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the images by the factor."""
    return images.mul_(_per_image(factor)).clamp_(0, 1)


def contrast_(images: Tensor, factor: Tensor) -> Tensor:
    """Blend the images with their mean luma: factor 0 gives a flat image, 1 the image itself."""
    mean = luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(_per_image(factor)).add_(mean * (1 - _per_image(factor))).clamp_(0, 1)


def saturation_(images: Tensor, factor: Tensor) -> Tensor:
    """Blend the images with their grey version: factor 0 gives grey, 1 the image itself."""
    grey = luma(images).mul_(1 - _per_image(factor))
    return images.mul_(_per_image(factor)).add_(grey).clamp_(0, 1)


def hue_(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by `factor` of the full circle, in [−0.5, 0.5], at constant HSV saturation and value.

    The channels of a pixel are low + chroma · clamp(|(hue + offset) mod 6 − 3| − 1, 0, 1), with the hue in sixths of
    the circle and the offset 0, 4, 2 for red, green, blue. This is the usual HSV → RGB conversion without its six
    cases.
    """
    red, green, blue = (channel.contiguous() for channel in images.split(1, dim=2))
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    chroma = high - low
    # Grey pixels have chroma 0, for which any finite hue will do.
    sixth = chroma.clamp_min(1e-12).reciprocal_()
    from_red, from_green, from_blue = (green - blue) * sixth, (blue - red) * sixth + 2, (red - green) * sixth + 4
    hue = torch.where(high == red, from_red, torch.where(high == green, from_green, from_blue))
    hue.add_(_per_image(factor) * 6)
    for channel, offset in enumerate((0.0, 4.0, 2.0)):
        turned = (hue + offset).remainder_(6)
        images[:, :, channel : channel + 1] = turned.sub_(3).abs_().sub_(1).clamp_(0, 1).mul_(chroma).add_(low)
    return images


def grayscale_(images: Tensor) -> Tensor:
    """Set all three channels to the luma."""
    return images.copy_(luma(images).expand_as(images))


def solarize_(images: Tensor, threshold: float = 128 / 255) -> Tensor:
    """Invert the values at or above the threshold."""
    return images.copy_(torch.where(images >= threshold, 1 - images, images))


JITTER: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness_, contrast_, saturation_, hue_)


def jitter(images: Tensor, factors: Tensor, order: npt.NDArray[np.int64]) -> Tensor:
    """Return images after colour jitter: the four operations of `JITTER`, in a separate order for each image.

    At each position of the order, each operation runs once, on all images that have it there. For that, the batch is
    sorted by operation at every position, so that each operation works in place on one slice of it.

    Args:
        images: float32 (N, H, 3, W), contiguous. Their content is overwritten, because the memory serves as scratch.
        factors: float32 (N, 4), the factors of the operations in the order of `JITTER`.
        order: int64 (N, 4), the operations of each image, first to last, −1 for none.

    Returns:
        float32 (N, H, 3, W).
    """
    spare = torch.empty_like(images)
    now = np.arange(len(images))  # the image at each place
    for place in order.T:
        then = np.argsort(place, kind="stable")
        images, spare = _rearrange(images, now, then, spare), images
        bounds = np.searchsorted(place[then], np.arange(len(JITTER) + 1))
        for number, operation in enumerate(JITTER):
            first, last = bounds[number], bounds[number + 1]
            if first < last:
                chosen = torch.from_numpy(then[first:last]).to(factors.device)
                operation(images[first:last], factors[chosen, number])
        now = then
    return _rearrange(images, now, np.arange(len(images)), spare)


def _rearrange(images: Tensor, now: npt.NDArray[np.int64], then: npt.NDArray[np.int64], out: Tensor) -> Tensor:
    where = np.empty_like(now)
    where[now] = np.arange(len(now))
    return torch.index_select(images, 0, torch.from_numpy(where[then]).to(images.device), out=out)
