"""Two models on the same queries: is the difference of their mAP more than chance?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

from rayreid.errors import UserError

RESAMPLES = 9_999
_BATCH = 256
"""Resamples drawn at once: bounds the memory at 256 × queries numbers."""


@dataclass(frozen=True)
class Comparison:
    """Difference of two models' mAP over the queries that both were scored on.

    Attributes:
        difference: mAP of the second less that of the first, in [−1, 1].
        low, high: bounds of its confidence interval.
        confidence: of the interval, e.g. 0.95.
        queries: counted by both.
        better, worse: queries on which the second model's average precision is higher, lower.
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
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def compare_queries(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap over queries (Efron and Tibshirani 1993, chapter 13: percentile interval).

    Both models answer each query, and queries differ far more than models do: so the queries are drawn again, with
    both answers together. Queries of one person are no independent draws, hence the interval is, if anything, narrow.

    Args:
        first, second: (Q,) average precision per query in the same order, NaN where a query is not counted.
        confidence: of the interval, in (0, 1).
        seed: of the resampling.

    Raises:
        UserError: lengths that differ, queries counted by one model only, or fewer than two counted queries.
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
    """Bring two models' values into one order of keys.

    Args:
        keys: for each model its queries' keys, unique.
        values: for each model (Q,) values in the order of its keys.

    Returns:
        For each model its values by ascending key.

    Raises:
        UserError: the models were not asked the same queries.
    """
    sets = [set(each) for each in keys]
    if any(other != sets[0] for other in sets[1:]):
        example = sorted(sets[0] ^ next(other for other in sets[1:] if other != sets[0]))[0]
        raise UserError(f"the models were not evaluated on the same queries (e.g. {example!r})")
    return [np.asarray(value)[np.argsort(each)] for each, value in zip(keys, values, strict=True)]


def _interval(gain: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    if np.ptp(gain) == 0:  # every resample is the same, for which SciPy gives NaN
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
