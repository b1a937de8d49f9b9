"""Tests whether the mAP of two models, or of two kinds of models, on the same queries differs by more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayreid.errors import UserError

RESAMPLES = 9_999
FEW_SEEDS = 4
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
    gain = _gain(a[None], b[None])[0]
    low, high = _interval(gain, confidence, seed)
    return _comparison(gain, low, high, confidence)


def compare_seeds(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two kinds of models, each trained with several seeds, by a paired bootstrap over seeds and queries.

    A resample draws S of the S pairs of models with the same seed, and Q of the Q queries, both with replacement, and
    takes the mean gain of the drawn pairs on the drawn queries. Both are crossed: every model answers every query. The
    interval is the percentile interval, as in `compare_queries`, and equals it, but for the draw, if there is one seed.

    With few seeds a bootstrap of them is far too narrow: with three, its 95 % interval covers 67 %. Up to
    `FEW_SEEDS`, Student's t-interval over the seeds' differences of mAP is therefore computed too, and each bound is
    the wider of both.

    Args:
        first: (S, Q) average precision per seed and query of the first kind; NaN for queries that are not counted.
        second: (S, Q) the same for the second kind, with the seeds and the queries in the same order.
        confidence: Confidence of the interval, in (0, 1).
        seed: Seed of the resampling.

    Returns:
        The difference of the mean mAP over the seeds; `better` and `worse` count queries by their mean over the seeds.

    Raises:
        UserError: The shapes differ, some queries are counted by only some models, or fewer than two queries are
            counted.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise UserError(f"cannot compare seed by seed and query by query: {a.shape} against {b.shape}")
    gain = _gain(a, b)
    low, high = _crossed_interval(gain, confidence, seed)
    if 1 < len(gain) <= FEW_SEEDS:
        mean, half = gain.mean(), _half_width(gain.mean(axis=1), confidence)
        low, high = min(low, float(mean - half)), max(high, float(mean + half))
    return _comparison(gain.mean(axis=0), low, high, confidence)


def interval_of_mean(precision: npt.ArrayLike, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the confidence interval of the mAP of one kind of model, trained with one or several seeds.

    It is that of `compare_seeds` for the difference to models that find nothing, within [0, 1].

    Args:
        precision: (S, Q) average precision per seed and query; NaN for queries that are not counted.
        confidence: Confidence of the interval, in (0, 1).
        seed: Seed of the resampling.

    Raises:
        UserError: See `compare_seeds`.
    """
    values = np.asarray(precision, np.float64)
    found = compare_seeds(np.where(np.isnan(values), np.nan, 0.0), values, confidence, seed)
    return max(found.low, 0.0), min(found.high, 1.0)


def _half_width(differences: np.ndarray, confidence: float) -> float:
    """Return half the width of Student's t-interval of the mean of (S,) differences."""
    from scipy.stats import t  # takes a second, in every process that imports this module

    count = len(differences)
    return float(t.ppf((1 + confidence) / 2, count - 1) * differences.std(ddof=1) / np.sqrt(count))


def _gain(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (S, counted queries): by how much the second is better.

    Raises:
        UserError: See `compare_seeds`.
    """
    uncounted = np.isnan(np.concatenate([first, second]))
    odd = int((uncounted.any(axis=0) & ~uncounted.all(axis=0)).sum())
    if odd:
        raise UserError(f"{odd} queries were counted by one model only: their galleries differ")
    gain = (second - first)[:, ~uncounted.all(axis=0)]
    if gain.shape[1] < 2:
        raise UserError(f"{gain.shape[1]} counted queries are too few to compare two models")
    return gain


def _comparison(gain: np.ndarray, low: float, high: float, confidence: float) -> Comparison:
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
    from scipy.stats import bootstrap  # takes a second, in every process that imports this module

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


def _crossed_interval(gain: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """Return the percentile interval of the mean of gains (S, Q) when seeds and queries are drawn with replacement."""
    rng = np.random.default_rng(seed)
    means = np.concatenate([_drawn_means(gain, rng, min(_BATCH, RESAMPLES - at)) for at in range(0, RESAMPLES, _BATCH)])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _drawn_means(gain: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Return the means (count,) of resamples, as products of how often each seed and each query was drawn."""
    by_seed, by_query = (_draws(rng, count, size) for size in gain.shape)
    return np.einsum("ns,ns->n", by_seed, by_query @ gain.T) / gain.size


def _draws(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Return how often each of `size` things occurs among `size` draws with replacement, float64 (count, size)."""
    drawn = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size).astype(np.float64)
