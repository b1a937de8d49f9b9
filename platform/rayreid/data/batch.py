"""Images of different sizes in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch


@dataclass(frozen=True)
class ImageBatch:
    """Images of different sizes, each in the upper left corner of a frame as large as the largest.

    Attributes:
        pixels: uint8 (B, 3, Hmax, Wmax), zero beyond each image.
        heights: int64 (B,), in pixels; always on the host, where crops are drawn.
        widths: int64 (B,), in pixels; likewise.
    """

    pixels: torch.Tensor
    heights: torch.Tensor
    widths: torch.Tensor

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch with its pixels on `device`."""
        return type(self)(self.pixels.to(device, non_blocking=non_blocking), self.heights, self.widths)

    def pinned(self) -> Self:
        """Return the batch with its pixels in page-locked memory, from which a GPU copies without the host."""
        return type(self)(self.pixels.pin_memory(), self.heights, self.widths)

    @classmethod
    def collate(cls, images: Sequence[np.ndarray]) -> Self:
        """Put decoded images into one batch.

        Args:
            images: uint8 (H, W, 3) each, at least one.

        Raises:
            ValueError: There is no image.
        """
        if not images:
            raise ValueError("a batch needs at least one image")
        heights = [image.shape[0] for image in images]
        widths = [image.shape[1] for image in images]
        frames = np.zeros((len(images), max(heights), max(widths), 3), dtype=np.uint8)
        for frame, image, height, width in zip(frames, images, heights, widths, strict=True):
            frame[:height, :width] = image
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
        return cls(pixels, torch.tensor(heights), torch.tensor(widths))
