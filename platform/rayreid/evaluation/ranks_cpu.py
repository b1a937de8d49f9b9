"""Compiled loops that rank the true matches of one query after another, without sorting or changing its row of scores.

They release the interpreter lock: threads of Python run them side by side. Compiled at the first call, then kept on
disk (numba's cache, which does not see changes in functions of other files: they call only what stands here).
"""

from typing import Any

import numpy as np
from numba import njit

CHUNK = 4096  # scores compared with all matches while the core's cache holds them
MANY = 1024  # matches from which each score is placed among theirs by bisection

compiled: Any = njit(nogil=True, cache=True)


@compiled
def _above(part: np.ndarray, limit: float) -> int:
    """How many scores are greater than `limit`."""
    count = np.int32(0)  # 32 bits like the scores: as many to an instruction
    for g in range(len(part)):
        count = np.int32(count + np.int32(part[g] > limit))
    return int(count)


@compiled
def _from(part: np.ndarray, limit: float) -> int:
    """How many scores are `limit` or greater."""
    count = np.int32(0)
    for g in range(len(part)):
        count = np.int32(count + np.int32(part[g] >= limit))
    return int(count)


@compiled
def by_counting(row: np.ndarray, matches: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """`true_ranks` by comparing every score with every match."""
    own = row[matches]
    ranks = np.ones(len(matches), np.int64)
    for start in range(0, len(row), CHUNK):
        stop = min(start + CHUNK, len(row))
        for j in range(len(matches)):
            here = min(max(matches[j], start), stop)  # equal scores win up to here, and lose from here on
            ranks[j] += _from(row[start:here], own[j]) + _above(row[here:stop], own[j])
    for j in range(len(matches)):
        for g in passed:
            if row[g] > own[j] or (row[g] == own[j] and g < matches[j]):
                ranks[j] -= 1
    ranks.sort()
    return ranks


@compiled
def _first_beaten(score: float, place: int, scores: np.ndarray, places: np.ndarray) -> int:
    """The first of the ranked `scores` (at gallery rows `places`) that the image at `place` beats."""
    low, high = 0, len(scores)
    while low < high:
        middle = (low + high) >> 1
        if scores[middle] < score or (scores[middle] == score and places[middle] > place):
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def by_bisection(row: np.ndarray, matches: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """`true_ranks` by counting how many images stand between one match and the next."""
    order = np.argsort(-row[matches], kind="mergesort")
    places = matches[order]
    scores = row[places]
    between = np.zeros(len(matches) + 1, np.int64)
    for g in range(len(row)):
        if row[g] >= scores[-1]:  # nothing below the last match beats any
            between[_first_beaten(row[g], g, scores, places)] += 1
    for g in passed:
        between[_first_beaten(row[g], g, scores, places)] -= 1
    return 1 + np.cumsum(between[:-1])


@compiled
def true_ranks(row: np.ndarray, matches: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """Ranks of a query's true matches among the gallery images that are not passed over, from 1, ascending.

    Args:
        row: (G,) float32 scores, the highest is best; of equal ones, the first in the gallery.
        matches: (M,) int64 gallery rows, ascending, M ≥ 1.
        passed: (P,) int64 gallery rows passed over, none of them a match.
    """
    if len(matches) < MANY:
        return by_counting(row, matches, passed)
    return by_bisection(row, matches, passed)


@compiled
def judge(
    scores: np.ndarray,
    first: int,
    rows: np.ndarray,
    spans: np.ndarray,
    seen: np.ndarray,
    cameras: np.ndarray,
    precision: np.ndarray,
    penalty: np.ndarray,
    best: np.ndarray,
    matches: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Judge the rankings of queries `first + low` to `first + high`; those without a true match are left as they are.

    Args:
        scores: (b, G) float32, row 0 is query `first`.
        rows: (G,) int64 gallery rows by identity, those of one ascending.
        spans: (Q, 2) int64, a query's identity in `rows`.
        seen: (G,) camera of each of `rows`.
        cameras: (Q,) camera whose images are passed over for a query; one that is in no `seen` for none.
        precision: (Q,) float64, written: average precision.
        penalty: (Q,) float64, written: matches / rank of the last.
        best: (Q,) int64, written: rank of the first match.
        matches: (Q,) int64, written: number of true matches.
    """
    for i in range(low, high):
        query = first + i
        relatives = rows[spans[query, 0] : spans[query, 1]]
        passed = seen[spans[query, 0] : spans[query, 1]] == cameras[query]
        true = relatives[~passed]
        count = len(true)
        if count == 0:
            continue
        ranks = true_ranks(scores[i], true, relatives[passed])
        total = 0.0
        for nth in range(count):
            total += (nth + 1) / ranks[nth]
        precision[query] = total / count
        penalty[query] = count / ranks[-1]
        best[query] = ranks[0]
        matches[query] = count
