"""The strategy `dedup`: groups of near-duplicates, and a few images of each group.

Duplicates by cosine within clusters are those of Abbas et al., "SemDeDup" (arXiv 2303.09540). Groups here are those of
greedy leaders, whose members are all similar to one image. Connected components, the usual choice, would chain a whole
sequence of frames into one group.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rayreid.selection.clusters import SAMPLE, cluster_count, even_priority
from rayreid.selection.features import Features, mean_feature, spread, usable_rows
from rayreid.selection.filelist import Keys
from rayreid.selection.kmeans import clusters_of, sampled_centres
from rayreid.selection.leaders import leaders_in, pieces_of
from rayreid.selection.pieces import HERE, Pieces
from rayreid.selection.strategies import Priority

ROUNDS = 10
"""Iterations of the k-means that makes cells; a cell need not be good, only small."""
_PER_ROOT = 0.25
"""Number of cells by default, in units of √N. Fewer and larger cells cost about the same, because most of the time with
√N cells goes into finding them, and lose fewer near-duplicates at their borders."""


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
    work: Pieces = HERE,
) -> tuple[Priority, dict[str, float], dict[str, npt.NDArray[np.int64]]]:
    """Return priorities of up to `keep` images per group of near-duplicates, facts, and the column `group`.

    See `near_duplicates` and `few_of_each` for the arguments and facts.
    """
    groups, facts = near_duplicates(pool, device, seed, copies, sizes, similarity, clusters, centre, work)
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
    work: Pieces = HERE,
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
        work: How the cells are divided and worked on. The result is the same for any division.

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
    pieces = pieces_of(rows[np.lexsort((ranks[rows], cells))], np.bincount(cells), work.at_once)
    leaders = np.full(len(pool.keys), -1)
    led = work.each(partial(leaders_in, replace(pool, keys=()), device, mean, similarity), pieces)
    for (members, _), found in zip(pieces, led, strict=True):
        leaders[members] = found
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
