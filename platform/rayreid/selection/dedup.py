"""The strategy `dedup`: groups of near-duplicates, and a few images of each group.

Duplicates by cosine within clusters are those of Abbas et al., "SemDeDup" (arXiv 2303.09540). Groups here are those of
greedy leaders, whose members are all similar to one image. Connected components, the usual choice, would chain a whole
sequence of frames into one group.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rayreid.compiled_loops import compiled
from rayreid.selection.clusters import SAMPLE, cluster_count, even_priority
from rayreid.selection.features import Features, mean_feature, spread, take, usable_rows
from rayreid.selection.filelist import Keys
from rayreid.selection.kmeans import clusters_of, sampled_centres
from rayreid.selection.strategies import Priority
from rayreid.selection.whole_directions import Directions, blocks, nearest, whole_directions

ROUNDS = 10
"""Iterations of the k-means that makes cells; a cell need not be good, only small."""
_PER_ROOT = 0.25
"""Number of cells by default, in units of √N. Fewer and larger cells cost about the same, because most of the time with
√N cells goes into finding them, and lose fewer near-duplicates at their borders."""
_HELD = 2**20
"""Number of images whose features are in memory at once, in float16: 0.8 GB at 384 dimensions."""
_BLOCK = 1024
"""Number of images of a cell that are compared with its leaders, and with one another, at once."""
_SAME = 1 - 1e-6
"""Greatest threshold: the cosine of a feature with itself is 1 but for rounding in float32."""


def dedup(
    pool: Features,
    device: torch.device,
    seed: int,
    copies: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    similarity: float,
    keep: int,
    clusters: int | str = "auto",
    centre: bool = False,
) -> tuple[Priority, dict[str, float], dict[str, npt.NDArray[np.int64]]]:
    """Return priorities of up to `keep` images per group of near-duplicates, facts, and the column `group`.

    See `near_duplicates` and `few_of_each` for the arguments and facts.
    """
    groups, facts = near_duplicates(pool, device, seed, copies, sizes, similarity, clusters, centre)
    priority, removed = few_of_each(pool.keys, groups, copies, sizes, keep, seed)
    return priority, {**facts, **removed}, {"group": groups}


def near_duplicates(
    pool: Features,
    device: torch.device,
    seed: int,
    copies: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    similarity: float,
    clusters: int | str = "auto",
    centre: bool = False,
) -> tuple[npt.NDArray[np.int64], dict[str, float]]:
    """Return the group of near-duplicates of each image, and facts.

    Images of the same bytes are in one group. The first ones of these are then taken from the largest to the smallest
    (ties: by smaller key) and compared with the leaders of their cluster: each joins the leader of greatest cosine, if
    that is `similarity` or more, or else becomes a leader. Near-duplicates in different clusters are not found.

    Args:
        pool: Features of all images of the pool, N of them.
        device: Device on which to compute. The result is the same on any device and number of threads.
        seed: Seed of the clusters.
        copies: Number of each image's group of identical bytes (N,).
        sizes: Number of pixels of each image (N,).
        similarity: Smallest cosine of an image with the leader of its group.
        clusters: Number of clusters; "auto": a quarter of √N.
        centre: Whether to subtract the pool's mean feature before cosines are computed.

    Returns:
        Row of the leader of each image's group, int64 (N,), −1 for images that could not be decoded. Facts: `clusters`,
        `copies` (images of the same bytes as an earlier one), `groups`, `grouped` (images in groups of two or more),
        `largest_group`, sizes of groups `group_p50`, `group_p90`, `group_p99` (quantiles over groups), and, with
        `centre`, the `spread` of the features.
    """
    usable = usable_rows(pool)
    mean = mean_feature(pool) if centre else None
    ranks = stated_order(pool.keys, sizes)
    firsts = _first_copies(usable, copies, ranks)
    rows = np.unique(firsts)
    count = cluster_count(len(rows), max(1, round(_PER_ROOT * len(rows) ** 0.5)) if clusters == "auto" else clusters)
    centres = sampled_centres(pool, rows, count, device, seed=seed, sample=SAMPLE, rounds=ROUNDS, mean=mean)
    cells = clusters_of(pool, rows, centres, mean)
    leaders = np.full(len(pool.keys), -1)
    for cell, features in _cells(pool, rows[np.lexsort((ranks[rows], cells))], np.bincount(cells)):
        leaders[cell] = cell[_leaders(whole_directions(features, device, mean), similarity)]
    groups = np.full(len(pool.keys), -1)
    groups[usable] = leaders[firsts]
    known = {} if mean is None else {"spread": spread(pool, mean)}
    return groups, {"clusters": count, "copies": len(usable) - len(rows), **_facts(groups[usable]), **known}


def few_of_each(
    keys: Keys,
    groups: npt.NDArray[np.int64],
    copies: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    keep: int,
    seed: int,
) -> tuple[Priority, dict[str, int]]:
    """Return priorities of up to `keep` images of each group, and the number of images removed.

    The largest images of a group are kept (ties: those of smaller key), and of images of the same bytes only one. A cut
    takes every group's first image before any second one.

    Args:
        keys: Keys of the images, N of them, unique.
        groups: Group of each image (N,), −1 for none.
        copies: Number of each image's group of identical bytes (N,).
        sizes: Number of pixels of each image (N,).
        keep: Greatest number of images to keep of a group.
        seed: Seed of the order of groups.

    Returns:
        Priorities float64 (N,), NaN for images that are removed or have no group. Facts: `removed`, not counting images
        without a group.
    """
    ranks = stated_order(keys, sizes)
    grouped = np.flatnonzero(groups >= 0)
    rows = np.unique(_first_copies(grouped, copies, ranks))
    rows = rows[np.lexsort((ranks[rows], groups[rows]))]
    _, starts, members = np.unique(groups[rows], return_index=True, return_counts=True)
    kept = rows[np.arange(len(rows)) - np.repeat(starts, members) < keep]
    remaining = np.full(len(groups), -1)
    remaining[kept] = groups[kept]
    return even_priority(keys, remaining, seed, ranks), {"removed": len(grouped) - len(kept)}


def stated_order(keys: Keys, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rank of each image, int64 (N,), 0 for the first: larger ones first, then those of smaller key."""
    table = pa.table({"size": pa.array(sizes), "key": pa.array(map(str, keys), pa.string())})
    order = pc.sort_indices(table, sort_keys=[("size", "descending"), ("key", "ascending")]).to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def _first_copies(
    rows: npt.NDArray[np.int64], copies: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return for each row the row of smallest rank, among the given ones, that has the same bytes."""
    order = rows[np.lexsort((ranks[rows], copies[rows]))]
    _, first, which = np.unique(copies[order], return_index=True, return_inverse=True)
    firsts = np.empty(len(ranks), np.int64)
    firsts[order] = order[first][which]
    return firsts[rows]


def _cells(
    pool: Features, rows: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], np.ndarray]]:
    """Yield rows (n,) and features (n, D) of each cell that is not empty, reading the pool once per `_HELD` images.

    Args:
        pool: Features of the pool.
        rows: Rows of the images, cell by cell.
        counts: Number of images of each cell.
    """
    ends = np.cumsum(counts[counts > 0])
    starts = ends - counts[counts > 0]
    first = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + _HELD, side="right")))
        held = np.sort(rows[starts[first] : ends[last - 1]])
        features = take(pool, held)
        for start, end in zip(starts[first:last], ends[first:last], strict=True):
            cell = rows[start:end]
            yield cell, features[np.searchsorted(held, cell)]
        first = last


def _leaders(points: Directions, similarity: float) -> npt.NDArray[np.int64]:
    """Return the place of the leader of each direction, int64 (n,); a leader is its own.

    A block of directions is compared with the leaders found before, then its members are compared with one another, so
    that memory grows with the number of images in a cell, not with its square.
    """
    found = np.empty(len(points), np.int64)
    leaders = Directions(torch.empty_like(points.whole), torch.empty_like(points.inverse))
    places = np.empty(len(points), np.int64)
    count = 0
    for block in blocks(len(points), _BLOCK):
        mine = points[block]
        cosines, best = (part.cpu().numpy() for part in nearest(mine, leaders[:count]))
        within = mine.cosines(mine).cpu().numpy()
        joined = _join(within, cosines, places[best], np.float32(min(similarity, _SAME)), block.start)
        new = np.flatnonzero(joined == np.arange(block.start, block.stop))
        slots = slice(count, count + len(new))
        own = mine[torch.from_numpy(new).to(mine.whole.device)]
        leaders.whole[slots], leaders.inverse[slots], places[slots] = own.whole, own.inverse, new + block.start
        found[block] = joined
        count += len(new)
    return found


@compiled()
def _join(
    within: np.ndarray, cosines: np.ndarray, leaders: np.ndarray, similarity: np.float32, start: int
) -> np.ndarray:
    """Return the place of the leader of each image of a block, in order.

    Args:
        within: Cosines of the images with one another, float32 (n, n).
        cosines: Cosine of each with the nearest earlier leader, float32 (n,); −∞ if there is none.
        leaders: Place of that leader, int64 (n,).
        similarity: Smallest cosine with a leader.
        start: Place of the first image of the block.
    """
    joined = np.empty(len(cosines), np.int64)
    new = np.empty(len(cosines), np.int64)
    count = 0
    for image in range(len(cosines)):
        greatest, leader = cosines[image], leaders[image]
        for other in new[:count]:
            if within[image, other] > greatest:
                greatest, leader = within[image, other], start + other
        if not greatest >= similarity:
            leader = start + image
            new[count] = image
            count += 1
        joined[image] = leader
    return joined


def _facts(groups: npt.NDArray[np.int64]) -> dict[str, int]:
    """Return the number of groups and images in them, and sizes of groups; see `near_duplicates`."""
    _, members = np.unique(groups, return_counts=True)
    quantiles = {
        f"group_p{percent}": int(np.quantile(members, percent / 100, method="higher")) for percent in (50, 90, 99)
    }
    return {
        "groups": len(members),
        "grouped": int(members[members > 1].sum()),
        "largest_group": int(members.max()),
        **quantiles,
    }
