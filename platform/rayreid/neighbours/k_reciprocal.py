"""k-reciprocal encoding and Jaccard distance on sparse rows.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017, arXiv 1701.08398): a point is
encoded by weights on those of its neighbours that have it among their own neighbours (eq. 3–7), rows are averaged over
the nearest ones (eq. 11), and two rows of sum 1 have the distance 1 − m/(2 − m), where m is the sum of their minima
(eq. 10). A row has a few dozen entries, so only pairs of rows that share an entry are considered; all others have
distance 1.
"""

from functools import partial

import numpy as np
from scipy import sparse

from rayreid.errors import UserError
from rayreid.neighbours import kernels
from rayreid.neighbours.kernels import in_blocks, side_by_side, thread_pool
from rayreid.neighbours.knn import Neighbours

ENTRIES = 2**20  # upper bound of the number of entries in the encoding of a block of rows
LISTS = 4_096  # number of lists examined at once
BLOCK = 512  # number of rows whose distances are computed at once
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))  # includes all pairs of rows that share an entry
MOST_NEIGHBOURS = 2_000
"""Mean number of points within reach of a point above which the features are considered collapsed."""


def half_list(k1: int) -> int:
    """Return the length of the half lists, including the point itself: round(k1 / 2) + 1, rounding halves to even."""
    return round(k1 / 2) + 1


def encode(neighbours: Neighbours, full: int, half: int, k2: int, scale: np.ndarray | None = None) -> sparse.csr_array:
    """Return the k-reciprocal encoding of every point, averaged over its first `k2` neighbours.

    A candidate of R(i, full) adds its own R(candidate, half) if more than 2/3 of that lies in R(i, full).

    Args:
        neighbours: Lists of at least `full` entries, or of all points.
        full: Number of entries of the full lists, including the point itself.
        half: Number of entries of the half lists, including the point itself.
        k2: Number of rows averaged, including the point's own; 1: only its own.
        scale: (N,) float32; weights are exp(−scale · squared distance), normalised to sum 1; None: 1.

    Returns:
        (N, N) float32, rows of sum 1, columns ascending.

    Raises:
        UserError: The requested lists are empty, or `k2` is out of range.
        ValueError: The lists are shorter than required.
    """
    lists = neighbours.rows
    points, longest = lists.shape
    if not 1 <= k2 <= full or half < 1:
        raise UserError(f"k-reciprocal lists of {full} and {half} neighbours, averaged over {k2}: need 1 <= k2 <= k1")
    if longest < min(full, points):
        raise ValueError(f"lists of {longest} neighbours where {full} are needed")
    fulls, halves = (np.empty((points, min(k, longest)), np.int32) for k in (full, half))
    counts = np.empty((2, points), np.int32)
    scales = np.ones(points, np.float32) if scale is None else scale.astype(np.float32)
    rows = partial(kernels.encode, neighbours.features, fulls, counts[0], halves, counts[1], scales)
    with thread_pool() as pool:
        for found, count in ((fulls, counts[0]), (halves, counts[1])):
            look = partial(kernels.reciprocal, lists, found.shape[1], found, count)
            side_by_side(pool, in_blocks(look, points, LISTS))
        parts = side_by_side(pool, in_blocks(rows, points, max(1, ENTRIES // (full * (1 + half)))))
    return _average(_join(parts, points), lists[:, :k2])


def _average(encoding: sparse.csr_array, lists: np.ndarray) -> sparse.csr_array:
    """Return the mean of each row over the rows in its list (N, k2); −1 stands for no row."""
    if lists.shape[1] == 1:
        return encoding
    kept = lists >= 0
    counts = kept.sum(axis=1)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    means = np.repeat((1 / counts).astype(np.float32), counts)
    averaged = sparse.csr_array((means, lists[kept], starts), shape=encoding.shape) @ encoding
    averaged.sort_indices()
    return averaged


def _join(parts: list[tuple[np.ndarray, ...]], width: int) -> sparse.csr_array:
    """Return blocks of (entries per row, columns, values) as one matrix with `width` columns."""
    lengths, columns, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    if starts[-1] <= np.iinfo(np.int32).max:
        starts = starts.astype(np.int32)  # scipy makes the columns as wide as these
    return sparse.csr_array((values, columns, starts), shape=(len(lengths), width))


def jaccard_distances(
    rows: sparse.csr_array, others: sparse.csc_array, within: float, most: int = MOST_NEIGHBOURS
) -> sparse.csr_array:
    """Return the Jaccard distances that are at most `within` as explicit entries, including zeros.

    Args:
        rows: (R, N) float32, each of sum 1.
        others: (M, N) float32, each row of sum 1, by column.
        within: Largest distance kept; below 1, the distance of rows that share nothing.
        most: Mean number of entries per row of a block above which to give up.

    Returns:
        (R, M) float32; the columns of a row have no particular order.

    Raises:
        UserError: `within` is out of range, or so many pairs are close that the model must have collapsed.
    """
    if not 0 <= within < 1:
        raise UserError(f"a Jaccard distance of {within} is out of range: choose it from 0 to below 1")
    limit = np.float32(within)
    arrays = (rows.indptr, rows.indices, rows.data, others.indptr, others.indices, others.data, others.shape[0])

    def distances(low: int, high: int) -> tuple[np.ndarray, ...]:
        part = kernels.jaccard(*arrays, limit, most * (high - low), low, high)
        if len(part[1]) > most * (high - low):
            raise UserError(
                f"more than {most} images on average lie within a Jaccard distance of {within:g} of an image: "
                "the features have collapsed, or the distance is too large"
            )
        return part

    with thread_pool() as pool:
        return _join(side_by_side(pool, in_blocks(distances, rows.shape[0], BLOCK)), others.shape[0])
