"""Priorities of a store's images by hash, score or list, and the cut that turns priorities into a subset.

A priority is a float64; higher is better, and NaN means that the strategy knows nothing about the image. Cuts at
increasing fractions are nested, and a sweep over the fraction does not recompute priorities.
"""

import hashlib
import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayreid.errors import UserError
from rayreid.selection.filelist import Keys, ListMatch

Priority = npt.NDArray[np.float64]


def random_priority(keys: Keys, seed: int) -> Priority:
    """Return a seeded hash of each key, uniform in [0, 1), which is the same for an image in every store."""
    salt = (seed % 2**64).to_bytes(8, "little")
    digests = b"".join(hashlib.blake2b(str(key).encode(), digest_size=8, salt=salt).digest() for key in keys)
    return (np.frombuffer(digests, dtype="<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def scored_priority(keys: Keys, scores: pa.Table, column: str = "cfs") -> Priority:
    """Return the score of each image; NaN for images that the table does not hold.

    Args:
        keys: The store's keys, N of them.
        scores: Table of `key: string` (unique), in any order, and a column of floats.
        column: Name of the column of floats.

    Raises:
        UserError: A key is scored twice, or none of the scores belongs to the store.
    """
    scored = scores.column("key").combine_chunks().cast(pa.string())
    if pc.count_distinct(scored).as_py() != len(scored):
        raise UserError("the scores hold some key more than once; run the score stage again")
    rows = pc.index_in(pa.array(map(str, keys), pa.string()), value_set=scored)
    if len(keys) and rows.null_count == len(keys):
        raise UserError("the scores belong to another store: none of their keys is in this one; score this one")
    values = scores.column(column).combine_chunks().cast(pa.float64()).take(rows)
    return np.asarray(values.fill_null(math.nan).to_numpy(zero_copy_only=False), dtype=np.float64)


def list_priority(count: int, match: ListMatch) -> Priority:
    """Return priorities in the order of a list: 0 for its first image, −1 for the next, …; NaN for unlisted images.

    Args:
        count: Number of images in the store, N.
        match: The list's rows in this store.
    """
    ranks = np.full(count, np.nan)
    ranks[match.rows] = -np.arange(len(match.rows), dtype=np.float64)
    return ranks


def cut(keys: Keys, priority: Priority, size: int) -> npt.NDArray[np.int64]:
    """Return the images of highest priority; ties go to the smaller key.

    Args:
        keys: The store's keys, N of them, unique.
        priority: Priorities float64 (N,); images with NaN are never selected.
        size: Number of images to select, at most N.

    Returns:
        Store rows, ascending, int64 (n,). There are fewer than `size` only if fewer images have a priority. A smaller
        cut is a subset of a larger one.

    Raises:
        UserError: `size` is larger than the store, or there is nothing to select.
    """
    if size > len(keys):
        raise UserError(f"select.count must be between 1 and the store's {len(keys)} images, not {size}")
    ranked = ~np.isnan(priority)
    wanted = min(size, int(ranked.sum()))
    if wanted < 1:
        raise UserError("select chose no image: raise select.fraction or select.count, or check the priorities")
    # Only images with the last admitted priority need to be sorted, which avoids sorting millions of strings.
    threshold = np.partition(priority[ranked], -wanted)[-wanted]
    above = np.flatnonzero(priority > threshold)
    tied = sorted(np.flatnonzero(priority == threshold).tolist(), key=lambda row: str(keys[row]))
    return np.sort(np.concatenate([above, np.array(tied[: wanted - len(above)], dtype=np.int64)]))
