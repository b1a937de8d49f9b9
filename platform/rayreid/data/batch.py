"""Images of different sizes in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch


@dataclass(frozen=True)
class ImageBatch:
    """Images of different sizes, concatenated in one buffer.

    Memory, copies and transfers are proportional to the number of pixels, whatever the size of the largest image.

    Attributes:
        pixels: uint8 (total,); each image is stored row by row with interleaved channels, (H, W, 3).
        offsets: int64 (B,), the start of each image in `pixels`. Like the sizes, it is on the host, where crops are
            drawn.
        heights: int64 (B,), in pixels.
        widths: int64 (B,), in pixels.
    """

    pixels: torch.Tensor
    offsets: np.ndarray
    heights: np.ndarray
    widths: np.ndarray

    def __len__(self) -> int:
        return len(self.heights)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch with its pixels on `device`."""
        return type(self)(self.pixels.to(device, non_blocking=non_blocking), self.offsets, self.heights, self.widths)

    def image(self, number: int) -> torch.Tensor:
        """Return a view of one image, uint8 (H, W, 3)."""
        start, height, width = (int(values[number]) for values in (self.offsets, self.heights, self.widths))
        return self.pixels[start : start + height * width * 3].view(height, width, 3)

    def part(self, start: int, stop: int) -> Self:
        """Return a view of the images from `start` up to but excluding `stop`."""
        offsets, heights, widths = (values[start:stop] for values in (self.offsets, self.heights, self.widths))
        if not len(offsets):
            raise ValueError("a batch needs at least one image")
        end = int(offsets[-1] + 3 * heights[-1] * widths[-1])
        return type(self)(self.pixels[int(offsets[0]) : end], offsets - offsets[0], heights, widths)

    def brightness(self) -> torch.Tensor:
        """Return the mean over pixels and channels of each image, float32 (B,) in [0, 1]."""
        return torch.stack([self.image(number).float().mean() for number in range(len(self))]) / 255

    def frames(self) -> torch.Tensor:
        """Return uint8 (B, 3, Hmax, Wmax), with each image in the upper left corner of a frame of zeros."""
        frames = self.pixels.new_zeros(len(self), int(self.heights.max()), int(self.widths.max()), 3)
        for number, (height, width) in enumerate(zip(self.heights, self.widths, strict=True)):
            frames[number, :height, :width] = self.image(number)
        return frames.permute(0, 3, 1, 2).contiguous()

    @classmethod
    def collate(cls, images: Sequence[np.ndarray], pinned: bool = False) -> Self:
        """Return decoded images as one batch.

        Args:
            images: uint8 (H, W, 3) each, at least one.
            pinned: Whether to use page-locked memory, from which a GPU copies without the host.

        Raises:
            ValueError: There is no image.
        """
        if not images:
            raise ValueError("a batch needs at least one image")
        heights, widths = (np.array([image.shape[axis] for image in images], np.int64) for axis in (0, 1))
        ends = np.cumsum(3 * heights * widths)
        pixels = torch.empty(int(ends[-1]), dtype=torch.uint8, pin_memory=pinned)
        offsets = ends - 3 * heights * widths
        buffer = pixels.numpy()
        for image, start, end in zip(images, offsets.tolist(), ends.tolist(), strict=True):
            buffer[start:end].reshape(image.shape)[:] = image
        return cls(pixels, offsets, heights, widths)
