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
    from scipy.stats import rankdata  # takes a second, in every process that imports this module

    both = np.isfinite(first) & np.isfinite(second)
    ranks = [rankdata(values[both]) for values in (first, second)]
    if not both.any() or any(np.ptp(one) == 0 for one in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def jaccard(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Return the Jaccard index of two subsets: images in both ÷ images in either; 1 for two empty subsets.

    Args:
        first: Index rows (n,) of a store, unique.
        second: Index rows (m,) of the same store, unique.
    """
    shared = len(np.intersect1d(first, second, assume_unique=True))
    either = len(first) + len(second) - shared
    return shared / either if either else 1.0
