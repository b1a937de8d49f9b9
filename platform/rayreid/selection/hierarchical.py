"""The strategy `hierarchical`: balanced sampling from hierarchical k-means, so that rare looks are not drowned.

Vo et al., "Automatic Data Curation for Self-Supervised Learning" (arXiv 2405.15613): k-means on the features, k-means
on the centres, and so on; then as many images from each cluster of the top level, shared evenly among its clusters of
the level below, and so on. K-means on centres, unlike k-means on images, does not follow the density of the pool. The
paper's resampling between rounds is left out.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from rayreid.errors import UserError
from rayreid.selection.features import Features, usable_rows
from rayreid.selection.kmeans import clusters_of, sampled_centres, spherical_kmeans
from rayreid.selection.strategies import Priority, random_priority
from rayreid.selection.whole_directions import nearest

SAMPLE = 32
"""Number of images per cluster of the finest level from which its centres are computed."""
ROUNDS = 5
"""Iterations on the finest level, which takes N^(5/3) products of features for each, at `SAMPLE` images per cluster."""
_CENTRE_ROUNDS = 20
"""Iterations on the levels above, where there are few points."""
_LEVELS = 2
_SALT = 0x41E2A9C4
"""Salt that makes the order within clusters differ from that of the strategy `random` with the same seed."""


def hierarchical_priority(
    pool: Features, device: torch.device, seed: int, levels: int | str | Sequence[int] = "auto"
) -> tuple[Priority, dict[str, int | float]]:
    """Return priorities by which every cut is balanced over the clusters of each level.

    A leaf gives its images in the order of a seeded hash. A cluster of a higher level gives the first images of its
    children, in a random order of the children, then their second images, and so on; children that have no image left
    are skipped. The priority is minus the place in this order at the root, so that cuts are nested.

    Args:
        pool: Features of all images of the pool, N of them.
        device: Device on which to compute. The result is the same on any device and number of threads.
        seed: Seed of the clusters and of the order within them.
        levels: Number of levels, or the number of clusters of each one, the finest first; see `level_sizes`.

    Returns:
        Priorities float64 (N,), NaN for images that could not be decoded. Facts: `clusters_1` (the finest level),
        `clusters_2`, …, and `largest_share`, the share of the images that the largest cluster of the top level has.

    Raises:
        UserError: The sizes are no sizes of levels.
    """
    rows = usable_rows(pool)
    sizes = level_sizes(len(rows), levels)
    centres = sampled_centres(pool, rows, sizes[0], device, seed=seed, sample=SAMPLE, rounds=ROUNDS)
    paths = [clusters_of(pool, rows, centres)]
    for size in sizes[1:]:
        above = spherical_kmeans(centres, size, seed, _CENTRE_ROUNDS)
        paths.append(nearest(centres, above)[1].cpu().numpy()[paths[-1]])
        centres = above
    hashes = random_priority([pool.keys[row] for row in rows], seed ^ _SALT)
    priority = np.full(len(pool.keys), np.nan)
    priority[rows] = -nested_places(paths, hashes, seed).astype(np.float64)
    share = np.bincount(paths[-1]).max() / len(rows)
    return priority, {
        **{f"clusters_{level}": size for level, size in enumerate(sizes, 1)},
        "largest_share": float(share),
    }


def level_sizes(images: int, levels: int | str | Sequence[int]) -> list[int]:
    """Return the number of clusters of each level, the finest first, for N images.

    Args:
        images: Number of images, N.
        levels: Sizes of the levels, or their number L (`auto`: 2). Level l of L has N^((L + 1 − l) / (L + 1)) clusters:
            N^(2/3) and N^(1/3) of two.

    Returns:
        The sizes; there are never more clusters than images.

    Raises:
        UserError: There is no level, a size is less than 1, or a level is larger than the one below it.
    """
    if levels == "auto":
        levels = _LEVELS
    if isinstance(levels, int):
        sizes = [max(1, round(images ** ((levels - level) / (levels + 1)))) for level in range(levels)]
    else:
        sizes = [min(size, images) for size in levels]
    if not sizes or min(sizes) < 1 or any(above > below for below, above in pairwise(sizes)):
        raise UserError(
            f"select.levels must be numbers of clusters, the finest level first, or the number of levels, not {levels}"
        )
    return sizes


def nested_places(
    paths: Sequence[npt.NDArray[np.int64]], hashes: npt.NDArray[np.float64], seed: int
) -> npt.NDArray[np.int64]:
    """Return the place of each image in the order of balanced sampling, int64 (N,), 0 for the first.

    Args:
        paths: Cluster of each image at each level, (N,) each, the finest level first; clusters are nested.
        hashes: Order of images within a leaf (N,), the greatest first.
        seed: Seed of the order of clusters within their parents.
    """
    places = _places_within(paths[0], -hashes)
    rng = np.random.default_rng(seed)
    root = np.zeros(len(hashes), np.int64)
    for children, parents in zip(paths, [*paths[1:], root], strict=True):
        turns = rng.permutation(children.max() + 1)[children]
        places = _places_within(parents, places, turns)
    return places


def _places_within(clusters: npt.NDArray[np.int64], *order: np.ndarray) -> npt.NDArray[np.int64]:
    """Return the place of each image within its cluster, by ascending values; the first array decides first."""
    sorted_rows = np.lexsort((*reversed(order), clusters))
    _, starts, members = np.unique(clusters[sorted_rows], return_index=True, return_counts=True)
    places = np.empty(len(clusters), np.int64)
    places[sorted_rows] = np.arange(len(clusters)) - np.repeat(starts, members)
    return places
