"""A test whether the mAP of two models on the same queries differs by more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

from rayreid.errors import UserError

RESAMPLES = 9_999
_BATCH = 256
"""Number of resamples drawn at once; it limits the memory to 256 × queries numbers."""


@dataclass(frozen=True)
class Comparison:
    """The difference of two models' mAP over the queries that both were scored on.

    Attributes:
        difference: mAP of the second model minus that of the first, in [−1, 1].
        low: Lower bound of the confidence interval of the difference.
        high: Upper bound of the interval.
        confidence: Confidence of the interval, e.g. 0.95.
        queries: Number of queries counted by both.
        better: Number of queries on which the second model's average precision is higher.
        worse: Number of queries on which it is lower.
    """

    difference: float
    low: float
    high: float
    confidence: float
    queries: int
    better: int
    worse: int

    @property
    def significant(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def compare_queries(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two models by a paired bootstrap over queries.

    The interval is the percentile interval of Efron and Tibshirani 1993, chapter 13.

    Both models answer each query, and queries differ far more than models do. Queries are therefore resampled, with
    both answers together. Queries of one person are not independent draws, so the interval is, if anything, too narrow.

    Args:
        first: (Q,) average precision per query of the first model; NaN for queries that are not counted.
        second: (Q,) the same for the second model, with the queries in the same order.
        confidence: Confidence of the interval, in (0, 1).
        seed: Seed of the resampling.

    Raises:
        UserError: The lengths differ, some queries are counted by only one model, or fewer than two queries are
            counted.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise UserError(f"cannot compare query by query: {a.shape} against {b.shape} average precisions")
    if (np.isnan(a) != np.isnan(b)).any():
        count = int((np.isnan(a) != np.isnan(b)).sum())
        raise UserError(f"{count} queries were counted by one model only: their galleries differ")
    gain = (b - a)[~np.isnan(a)]
    if len(gain) < 2:
        raise UserError(f"{len(gain)} counted queries are too few to compare two models")
    low, high = _interval(gain, confidence, seed)
    return Comparison(
        difference=float(gain.mean()),
        low=low,
        high=high,
        confidence=confidence,
        queries=len(gain),
        better=int((gain > 0).sum()),
        worse=int((gain < 0).sum()),
    )


def align(keys: Sequence[Sequence[str]], values: Sequence[npt.ArrayLike]) -> list[np.ndarray]:
    """Return two models' values in a common order of keys.

    Args:
        keys: For each model, the keys of its queries, unique.
        values: For each model, (Q,) values in the order of its keys.

    Returns:
        For each model, its values by ascending key.

    Raises:
        UserError: The models were evaluated on different queries.
    """
    sets = [set(each) for each in keys]
    if any(other != sets[0] for other in sets[1:]):
        example = sorted(sets[0] ^ next(other for other in sets[1:] if other != sets[0]))[0]
        raise UserError(f"the models were not evaluated on the same queries (e.g. {example!r})")
    return [np.asarray(value)[np.argsort(each)] for each, value in zip(keys, values, strict=True)]


def _interval(gain: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    if np.ptp(gain) == 0:  # all resamples are equal, for which SciPy gives NaN
        return float(gain[0]), float(gain[0])
    result = bootstrap(
        (gain,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
