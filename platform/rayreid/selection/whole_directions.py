"""Directions of features in whole numbers: their products are exact, so that results are the same on every machine.

A sum of floating-point products depends on its order, which depends on the number of threads, on the shape of the
matrices and on the device. A threshold on cosines, or a choice of the greatest, would then differ now and then. Sums
of whole numbers are exact in float32 as long as they are below 2²⁴. Features of length 1 are therefore scaled to
`SCALE` and rounded. The rounding changes a cosine by about as much as storage in float16 does (1e-4), and by far less
near 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayreid.devices import tf32

SCALE = 4000
"""Length of a direction before rounding: it stays below 4096 for up to 36,000 dimensions, and products below 2²⁴."""
_CONVERTED = 16_384
"""Number of features that are converted in float64 at once."""
_ROWS, _COLUMNS = 2048, 8192
"""Number of directions of either side that are multiplied at once: 64 MiB of cosines."""


@dataclass(frozen=True)
class Directions:
    """Directions in whole numbers.

    Attributes:
        whole: Whole numbers, float32 (N, D), in rows of length `SCALE` before rounding; or zeros.
        inverse: 1 / length of each row, float32 (N,); 0 if it is zero.
    """

    whole: Tensor
    inverse: Tensor

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, rows: slice | Tensor) -> "Directions":
        return Directions(self.whole[rows], self.inverse[rows])

    def cosines(self, others: "Directions") -> Tensor:
        """Return the cosine of each direction with each of the others, float32 (N, M)."""
        with tf32(False):
            products = self.whole @ others.whole.T
        return products.mul_(others.inverse).mul_(self.inverse[:, None])


def whole_directions(features: np.ndarray, device: torch.device, mean: np.ndarray | None = None) -> Directions:
    """Return the directions of features.

    Args:
        features: Features (N, D), float16 or float32, finite; those in float16 give the same result everywhere.
        device: Device of the result.
        mean: A vector float64 (D,) to subtract before: see `rayreid.selection.features.mean_feature`.
    """
    whole = torch.empty(features.shape, dtype=torch.float32, device=device)
    inverse = torch.empty(len(features), dtype=torch.float32, device=device)
    shift = None if mean is None else torch.from_numpy(mean).to(device)
    for block in blocks(len(features), _CONVERTED):
        points = torch.from_numpy(np.ascontiguousarray(features[block])).to(device).double()
        rounded = rounded_directions(points if shift is None else points - shift)
        whole[block], inverse[block] = rounded.whole, rounded.inverse
    return Directions(whole, inverse)


def rounded_directions(points: Tensor) -> Directions:
    """Return the directions of vectors float64 (N, D); the same everywhere if the sums of their squares are exact."""
    length = points.square().sum(dim=1).sqrt()
    whole = (points * torch.where(length > 0, SCALE / length, 0)[:, None]).round_()
    length = whole.square().sum(dim=1).sqrt()
    return Directions(whole.float(), torch.where(length > 0, 1 / length, 0).float())


def nearest(points: Directions, others: Directions) -> tuple[Tensor, Tensor]:
    """Return the direction of greatest cosine among others for each of N; ties go to the first.

    Args:
        points: Directions, N of them.
        others: Directions on the same device; if there are none, cosines are −∞.

    Returns:
        Cosines float32 (N,), and rows of `others` int64 (N,).
    """
    cosines = points.inverse.new_full((len(points),), -torch.inf)
    rows = torch.zeros(len(points), dtype=torch.int64, device=cosines.device)
    for mine in blocks(len(points), _ROWS):
        for theirs in blocks(len(others), _COLUMNS):
            best, place = points[mine].cosines(others[theirs]).max(dim=1)
            better = best > cosines[mine]
            cosines[mine] = torch.where(better, best, cosines[mine])
            rows[mine] = torch.where(better, place + theirs.start, rows[mine])
    return cosines, rows


def blocks(count: int, size: int) -> Iterator[slice]:
    """Yield the slices of up to `size` that cover `count` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
