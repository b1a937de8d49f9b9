"""Features of a store's images, larger than memory, and what is read from them in one pass."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayreid.selection.filelist import Keys

_GRAIN = 2.0**24
"""Features in float16 are multiples of 1 / `_GRAIN`."""


@dataclass(frozen=True)
class Features:
    """Features of a store's images, or of some of them, larger than memory.

    Attributes:
        keys: The keys of all images of the store, N of them.
        parts: Function that yields index rows (n,) and features float16 (n, D) of length 1, with NaN for images that
            could not be decoded; every call starts from the beginning.
    """

    keys: Keys
    parts: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


def usable_rows(pool: Features) -> npt.NDArray[np.int64]:
    """Return the rows of the images that could be decoded, int64, ascending."""
    return np.sort(np.concatenate([rows[~np.isnan(found[:, 0])] for rows, found in pool.parts()]))


def take(pool: Features, rows: npt.NDArray[np.int64]) -> np.ndarray:
    """Return the features of some images, (n, D) in the type of the parts.

    Args:
        pool: The features.
        rows: Rows of the images (n,), ascending, each once, n ≥ 1; the pool has features of all of them.
    """
    taken = np.empty((0, 0))
    for places, found in wanted_parts(pool, rows):
        if not len(taken):
            taken = np.empty((len(rows), found.shape[1]), found.dtype)
        taken[places] = found
    return taken


def wanted_parts(pool: Features, rows: npt.NDArray[np.int64]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield per part: places in `rows` int64 (n,), and the features of these images (n, D).

    Args:
        pool: The features.
        rows: Rows of the wanted images, ascending, each once, at least one.
    """
    for theirs, found in pool.parts():
        places = np.minimum(np.searchsorted(rows, theirs), len(rows) - 1)
        wanted = rows[places] == theirs
        yield places[wanted], found[wanted]


def mean_feature(pool: Features) -> npt.NDArray[np.float64]:
    """Return the mean of the features of a pool, float64 (D,), rounded to a multiple of 2⁻²⁴.

    The mean does not depend on the division into parts: sums of float16 values of up to 1 are exact in float64, for up
    to 2²⁹ images. The difference between a feature in float16 and the rounded mean is exact, too.
    """
    total: np.ndarray | float = 0.0
    count = 0
    for _, found in pool.parts():
        usable = ~np.isnan(found[:, 0])
        total = total + found[usable].sum(axis=0, dtype=np.float64)
        count += int(usable.sum())
    return np.rint(np.asarray(total) / count * _GRAIN) / _GRAIN


def spread(pool: Features, mean: npt.NDArray[np.float64]) -> float:
    """Return the root mean square distance of the features of a pool from their mean: 0 if all are equal, at most 1."""
    total, count = 0.0, 0
    for _, found in pool.parts():
        apart = found[~np.isnan(found[:, 0])] - mean
        total += float(np.square(apart).sum())
        count += len(apart)
    return float(np.sqrt(total / count))


def centred(pool: Features, mean: npt.NDArray[np.float64]) -> Features:
    """Return the features minus a mean, float32 and of any length."""

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows, found in pool.parts():
            yield rows, (found - mean).astype(np.float32)

    return Features(pool.keys, parts)
