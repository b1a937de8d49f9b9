"""Compiled loops over neighbour lists and sparse rows; each works on a range of rows and releases the interpreter lock.

Python threads run them in parallel (`side_by_side`), as many as torch may use. This avoids a second thread pool with
its own rules on forking. The loops are compiled at the first call and cached on disk (numba's cache).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch

from rayreid.compiled_loops import compiled

CHUNK = 64  # number of similarities that are checked at once for any that is near enough
REORDERED = {"reassoc", "contract", "nsz", "nnan"}  # allows vectorised sums and minima; features are finite

compiled_sums: Any = compiled(fastmath=REORDERED)


def in_blocks(kernel: Callable[[int, int], Any], rows: int, block: int) -> list[Callable[[], Any]]:
    """Return `kernel(low, high)` for all blocks of rows, in order, as functions that are not called yet."""
    return [partial(kernel, low, min(low + block, rows)) for low in range(0, rows, block)]


def side_by_side(pool: ThreadPoolExecutor, tasks: list[Callable[[], Any]]) -> list[Any]:
    """Return the results of all tasks, in order."""
    return list(pool.map(lambda task: task(), tasks))


def thread_pool() -> ThreadPoolExecutor:
    """Return a pool with as many threads as torch uses."""
    return ThreadPoolExecutor(torch.get_num_threads())


@compiled()
def _insert(values: np.ndarray, names: np.ndarray, value: float, name: int) -> float:
    """Insert into a descending list, after equal values, and return the new last value; place 0 is not changed."""
    place = len(values) - 1
    while place > 1 and values[place - 1] < value:
        values[place], names[place] = values[place - 1], names[place - 1]
        place -= 1
    values[place], names[place] = value, name
    return values[-1]


@compiled_sums
def take_rows(
    tile: np.ndarray,
    first: int,
    column: int,
    names: np.ndarray,
    values: np.ndarray,
    last: np.ndarray,
    least: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Offer the tile's columns as neighbours to its rows `low` to `high`.

    Args:
        tile: (B, C) float32 similarities.
        first: The point of row 0 of the tile.
        column: The point of column 0 of the tile.
        names: (N, k) neighbours, in descending order of similarity, the point itself at place 0.
        values: (N, k) similarities, descending.
        last: (N,) `values[:, -1]`.
        least: (N,) smallest similarity so far.
        low: First row.
        high: Row after the last.
    """
    width = tile.shape[1]
    for r in range(low, high):
        point = first + r
        lowest = least[point]
        for start in range(0, width, CHUNK):
            stop = min(start + CHUNK, width)
            limit, near = last[point], 0
            for c in range(start, stop):
                near += tile[r, c] > limit
                lowest = min(lowest, tile[r, c])
            if near == 0:
                continue
            for c in range(start, stop):
                if tile[r, c] > last[point] and column + c != point:
                    last[point] = _insert(values[point], names[point], tile[r, c], column + c)
        least[point] = lowest


@compiled_sums
def take_columns(
    tile: np.ndarray,
    row: int,
    first: int,
    names: np.ndarray,
    values: np.ndarray,
    last: np.ndarray,
    least: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Offer the tile's rows as neighbours to its columns `low` to `high`; the arguments are as in `take_rows`."""
    for r in range(tile.shape[0]):
        for start in range(low, high, CHUNK):
            stop, near = min(start + CHUNK, high), 0
            for c in range(start, stop):
                near += tile[r, c] > last[first + c]
                least[first + c] = min(least[first + c], tile[r, c])
            if near == 0:
                continue
            for c in range(start, stop):
                point = first + c
                if tile[r, c] > last[point]:
                    last[point] = _insert(values[point], names[point], tile[r, c], row + r)


@compiled()
def reciprocal(
    lists: np.ndarray,
    k: int,
    found: np.ndarray,
    counts: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Find R(i, k) of points `low` to `high`: those of i's first k neighbours that have i among their first k.

    Args:
        lists: (N, ≥ k) int32 neighbours, the point itself first; −1 after the last of a shorter list.
        k: Number of neighbours considered.
        found: (N, k) int32, written from the left.
        counts: (N,) int32, written: number of entries of `found`.
        low: First point.
        high: Point after the last.
    """
    for i in range(low, high):
        count = 0
        for a in range(k):
            j = lists[i, a]
            if j < 0:
                break
            for b in range(k):
                if lists[j, b] == i:
                    found[i, count] = j
                    count += 1
                    break
        counts[i] = count


@compiled_sums
def encode(
    features: np.ndarray,
    full: np.ndarray,
    fulls: np.ndarray,
    half: np.ndarray,
    halves: np.ndarray,
    scale: np.ndarray,
    low: int,
    high: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows `low` to `high` of the k-reciprocal encoding, as (entries per row, columns ascending, weights).

    Args:
        features: (N, D) float32, of length 1.
        full: (N, k) int32, R(i, k).
        fulls: (N,) int32, lengths of R(i, k).
        half: (N, h) int32, R(i, h).
        halves: (N,) int32, lengths of R(i, h).
        scale: (N,) float32; weights are exp(−scale · squared distance), normalised to sum 1.
        low: First row.
        high: Row after the last.
    """
    points, bound = len(features), full.shape[1] * (1 + half.shape[1])
    lengths = np.empty(high - low, np.int64)
    columns, weights = np.empty((high - low) * bound, np.int32), np.empty((high - low) * bound, np.float32)
    member, chosen = np.full(points, -1, np.int32), np.full(points, -1, np.int32)
    used = 0
    for i in range(low, high):
        start = used
        for a in range(fulls[i]):
            member[full[i, a]] = chosen[full[i, a]] = i
            columns[used] = full[i, a]
            used += 1
        for a in range(fulls[i]):
            candidate = full[i, a]
            shared = 0
            for b in range(halves[candidate]):
                shared += member[half[candidate, b]] == i
            if 3 * shared <= 2 * halves[candidate]:
                continue
            for b in range(halves[candidate]):
                j = half[candidate, b]
                if chosen[j] != i:
                    chosen[j] = i
                    columns[used] = j
                    used += 1
        columns[start:used].sort()
        total = np.float32(0)
        for e in range(start, used):
            similarity = np.float32(0)
            for d in range(features.shape[1]):
                similarity += features[i, d] * features[columns[e], d]
            weights[e] = np.exp(-scale[i] * (np.float32(2) - np.float32(2) * similarity))
            total += weights[e]
        for e in range(start, used):
            weights[e] /= total
        lengths[i - low] = used - start
    return lengths, columns[:used].copy(), weights[:used].copy()


@compiled_sums
def jaccard(
    starts: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    ends: np.ndarray,
    rows: np.ndarray,
    others: np.ndarray,
    points: int,
    within: float,
    most: int,
    low: int,
    high: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return Jaccard distances ≤ `within` of sparse rows `low` to `high` to all others that share a column with them.

    Args:
        starts: Index pointer of the rows, CSR.
        columns: Columns of the rows.
        weights: Weights of the rows, positive; each row sums to 1.
        ends: Index pointer of the others by column, CSC.
        rows: Row numbers of the others.
        others: Weights of the others.
        points: Number of the others.
        within: Largest distance kept, below 1.
        most: Number of entries above which to give up.
        low: First row.
        high: Row after the last.

    Returns:
        (entries per row, columns, distances). If there are more than `most` entries, the remaining rows are missing.
    """
    lengths = np.zeros(high - low, np.int64)
    names, distances = np.empty(4 * points, np.int32), np.empty(4 * points, np.float32)
    shared, touched = np.zeros(points, np.float32), np.empty(points + 1, np.int32)
    used = 0
    for i in range(low, high):
        count = 0
        for e in range(starts[i], starts[i + 1]):
            weight = weights[e]
            for f in range(ends[columns[e]], ends[columns[e] + 1]):
                j, other = rows[f], others[f]
                before = shared[j]
                touched[count] = j  # overwritten unless j is new: a branch here would be unpredictable
                count += before == np.float32(0)
                shared[j] = before + (weight if weight < other else other)
        if used + count > len(names):
            names = np.concatenate((names, np.empty(len(names) + count, np.int32)))
            distances = np.concatenate((distances, np.empty(len(distances) + count, np.float32)))
        start = used
        for t in range(count):
            j = touched[t]
            distance = max(np.float32(0), np.float32(1) - shared[j] / (np.float32(2) - shared[j]))
            shared[j] = 0
            names[used], distances[used] = j, distance
            used += distance <= within
        lengths[i - low] = used - start
        if used > most:
            break
    return lengths, names[:used].copy(), distances[:used].copy()
