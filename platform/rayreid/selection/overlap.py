"""How far two ways of choosing agree."""

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from rayreid.selection.strategies import Priority


def rank_correlation(first: Priority, second: Priority) -> float:
    """Spearman's correlation over the images that both rank; NaN where one of them ranks all alike, or they share none.

    Args:
        first: (N,), NaN: not ranked.
        second: (N,), likewise.
    """
    both = np.isfinite(first) & np.isfinite(second)
    ranks = [rankdata(values[both]) for values in (first, second)]
    if not both.any() or any(np.ptp(one) == 0 for one in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def jaccard(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Images in both subsets ÷ images in either; rows of the same store, unique in each. 1 for two empty ones."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    either = len(first) + len(second) - shared
    return shared / either if either else 1.0
