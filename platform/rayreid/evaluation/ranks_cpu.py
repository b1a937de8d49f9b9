"""Compiled loops that rank the true matches of one query after another, without sorting or changing its row of scores.

They release the interpreter lock, so that Python threads run them in parallel. They are compiled at the first call and
cached on disk. Numba's cache does not see changes of functions in other files, so they only call functions of this
file.
"""

import numpy as np

from rayreid.compiled_loops import compiled

CHUNK = 4096  # number of scores compared with all matches while the core's cache has them
MANY = 1024  # number of matches from which scores are placed among them by bisection


@compiled()
def _above(part: np.ndarray, limit: float) -> int:
    """Return the number of scores greater than `limit`."""
    count = np.int32(0)  # 32 bits like the scores, so that an instruction processes equally many
    for g in range(len(part)):
        count = np.int32(count + np.int32(part[g] > limit))
    return int(count)


@compiled()
def _from(part: np.ndarray, limit: float) -> int:
    """Return the number of scores equal to or greater than `limit`."""
    count = np.int32(0)
    for g in range(len(part)):
        count = np.int32(count + np.int32(part[g] >= limit))
    return int(count)


@compiled()
def by_counting(row: np.ndarray, matches: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """Return `true_ranks`, computed by comparing every score with every match."""
    own = row[matches]
    ranks = np.ones(len(matches), np.int64)
    for start in range(0, len(row), CHUNK):
        stop = min(start + CHUNK, len(row))
        for j in range(len(matches)):
            here = min(max(matches[j], start), stop)  # equal scores win before this place, and lose from it on
            ranks[j] += _from(row[start:here], own[j]) + _above(row[here:stop], own[j])
    for j in range(len(matches)):
        for g in passed:
            if row[g] > own[j] or (row[g] == own[j] and g < matches[j]):
                ranks[j] -= 1
    ranks.sort()
    return ranks


@compiled()
def _first_beaten(score: float, place: int, scores: np.ndarray, places: np.ndarray) -> int:
    """Return the first of the ranked `scores` (at gallery rows `places`) that the image at `place` beats."""
    low, high = 0, len(scores)
    while low < high:
        middle = (low + high) >> 1
        if scores[middle] < score or (scores[middle] == score and places[middle] > place):
            high = middle
        else:
            low = middle + 1
    return low


@compiled()
def by_bisection(row: np.ndarray, matches: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """Return `true_ranks`, computed by counting the images between one match and the next."""
    order = np.argsort(-row[matches], kind="mergesort")
    places = matches[order]
    scores = row[places]
    between = np.zeros(len(matches) + 1, np.int64)
    for g in range(len(row)):
        if row[g] >= scores[-1]:  # images below the last match beat none
            between[_first_beaten(row[g], g, scores, places)] += 1
    for g in passed:
        between[_first_beaten(row[g], g, scores, places)] -= 1
    return 1 + np.cumsum(between[:-1])


@compiled()
def true_ranks(row: np.ndarray, matches: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """Return the ranks of a query's true matches among the gallery images that are not skipped, from 1, ascending.

    Args:
        row: (G,) float32 scores; the highest is best, and of equal ones the first in the gallery.
        matches: (M,) int64 gallery rows, ascending, M ≥ 1.
        passed: (P,) int64 gallery rows that are skipped, none of them a match.
    """
    if len(matches) < MANY:
        return by_counting(row, matches, passed)
    return by_bisection(row, matches, passed)


@compiled()
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
    """Score the rankings of queries `first + low` to `first + high`.

    The results of queries without a true match are not changed.

    Args:
        scores: (b, G) float32; row 0 is query `first`.
        first: The query of row 0.
        rows: (G,) int64 gallery rows by identity, ascending within an identity.
        spans: (Q, 2) int64, the range of a query's identity in `rows`.
        seen: (G,), the camera of each of `rows`.
        cameras: (Q,), the camera whose images are skipped for a query; a number that is not in `seen` for none.
        precision: (Q,) float64, written: average precision.
        penalty: (Q,) float64, written: number of matches / rank of the last.
        best: (Q,) int64, written: rank of the first match.
        matches: (Q,) int64, written: number of true matches.
        low: First row of `scores`.
        high: Row after the last.
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
