"""Nested cuts of one pool as steps: what a larger cut adds to the next smaller one; one pass then serves all cuts."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayreid.selection.features import Features
from rayreid.selection.filelist import Keys
from rayreid.selection.strategies import Priority, cut

_BLOCK = 2048
"""Most images that `blocks` yields at once: with 8,192 others, 64 MiB of similarities."""

Steps = npt.NDArray[np.int8]
"""For each image of a pool, the first of F ascending cuts that keeps it; F: none of them does."""


def steps_of(keys: Keys, priority: Priority, sizes: Sequence[int]) -> Steps:
    """Return the first cut that keeps each image.

    Args:
        keys: Keys of the pool's images, N of them.
        priority: Priorities float64 (N,); NaN: never selected.
        sizes: Sizes of the cuts, ascending, F < 128 of them.
    """
    steps = np.full(len(keys), len(sizes), np.int8)
    for number in reversed(range(len(sizes))):
        steps[cut(keys, priority, sizes[number])] = number
    return steps


def by_step(steps: Steps, cuts: int) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
    """Yield selection, cut, and the places of the images that this cut is the first to keep, if there are any."""
    for one, theirs in enumerate(steps):
        for number in range(cuts):
            places = np.flatnonzero(theirs == number)
            if len(places):
                yield one, number, places


def blocks(pool: Features, device: torch.device) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Yield index rows (n,) and features float32 (n, D) of the images that could be decoded, n ≤ `_BLOCK`."""
    for rows, found in pool.parts():
        for start in range(0, len(rows), _BLOCK):
            block = np.asarray(found[start : start + _BLOCK])
            usable = ~np.isnan(block[:, 0])
            if usable.any():
                yield (
                    rows[start : start + _BLOCK][usable],
                    torch.from_numpy(block[usable].astype(np.float32)).to(device),
                )
