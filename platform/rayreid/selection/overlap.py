"""Agreement of two selections."""

import numpy as np
import numpy.typing as npt

from rayreid.selection.strategies import Priority


def rank_correlation(first: Priority, second: Priority) -> float:
    """Return Spearman's rank correlation over the images that both priorities rank.

    Args:
        first: Priorities (N,), NaN for images that are not ranked.
        second: Priorities (N,) of the same images, likewise.

    Returns:
        The correlation in [−1, 1]; NaN if the two share no ranked image, or if one gives all of them the same rank.
    """
    both = np.isfinite(first) & np.isfinite(second)
    if not both.any():
        return float("nan")
    ranks = np.stack([_ranks(values[both]) for values in (first, second)])
    if (np.ptp(ranks, axis=1) == 0).any():
        return float("nan")
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def _ranks(values: Priority) -> Priority:
    """Return ranks from 1; equal values have the mean of theirs. Importing scipy's takes each scoring a second."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def jaccard(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Return the Jaccard index of two subsets: images in both ÷ images in either; 1 for two empty subsets.

    Args:
        first: Index rows (n,) of a store, unique.
        second: Index rows (m,) of the same store, unique.
    """
    shared = len(np.intersect1d(first, second, assume_unique=True))
    either = len(first) + len(second) - shared
    return shared / either if either else 1.0
