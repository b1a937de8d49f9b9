"""The strategy `cluster`: even sampling over clusters, so every kind of image in equal number, whatever the target."""

import math

import numpy as np
import numpy.typing as npt
import torch

from rayreid.neighbours.knn import require_faiss
from rayreid.selection.filelist import Keys
from rayreid.selection.similarity import Features, nearest_in_parts
from rayreid.selection.strategies import Priority, random_priority

SAMPLE = 256
"""Images per cluster that the centres are found on, at most; more change them little (faiss's own rule)."""
_ROUNDS = 20
_SALT = 0xC1057E25
"""Sets the order within clusters apart from that of the strategy `random` with the same seed."""


def cluster_priority(
    pool: Features, device: torch.device, seed: int, clusters: int | str
) -> tuple[Priority, dict[str, int]]:
    """Return priorities that deal every cut evenly to clusters of the pool, and how many clusters there are.

    Args:
        pool: Features of all images of the pool, N of them.
        device: Where to find each image's cluster.
        seed: Of the clusters and of the order within them.
        clusters: See `cluster_count`.

    Returns:
        float64 (N,), NaN where an image could not be decoded; and facts.
    """
    centres = _centres(pool, clusters, seed)
    _, places = nearest_in_parts(pool, centres, device)
    return even_priority(pool.keys, places, seed), {"clusters": len(centres)}


def _centres(pool: Features, clusters: int | str, seed: int) -> npt.NDArray[np.float32]:
    """Return cluster centres found on a sample of the pool; the same however the pool is dealt to shards."""
    every = list(pool.parts())
    usable = np.sort(np.concatenate([rows[~np.isnan(found[:, 0])] for rows, found in every]))
    count = cluster_count(len(usable), clusters)
    drawn = np.sort(np.random.default_rng(seed).permutation(usable)[: SAMPLE * count])
    sample = np.empty((len(drawn), every[0][1].shape[1]), np.float32)
    for rows, found in every:
        _, mine, places = np.intersect1d(rows, drawn, assume_unique=True, return_indices=True)
        sample[places] = found[mine]
    return find_centres(sample, count, seed)


def cluster_count(images: int, wanted: int | str) -> int:
    """`auto`: the square root of the number of images; never more than there are."""
    return min(images, round(math.sqrt(images)) if wanted == "auto" else int(wanted))


def find_centres(features: npt.NDArray[np.float32], count: int, seed: int) -> npt.NDArray[np.float32]:
    """Spherical k-means.

    Args:
        features: float32 (N, D), of length 1; a sample of `SAMPLE` images per cluster is enough.
        count: clusters, at most N.
        seed: of the first centres.

    Returns:
        float32 (count, D), of length 1.

    Raises:
        UserError: faiss cannot be loaded.
    """
    faiss = require_faiss()
    kmeans = faiss.Kmeans(
        features.shape[1],
        count,
        niter=_ROUNDS,
        seed=seed % 2**31,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE,
    )
    kmeans.train(np.ascontiguousarray(features, np.float32))
    assert kmeans.centroids is not None
    return np.asarray(kmeans.centroids)


def even_priority(keys: Keys, clusters: npt.NDArray[np.integer], seed: int) -> Priority:
    """Priorities by which every cut takes from all clusters evenly, as far as they reach.

    Clusters deal their images in turn, in the order of a seeded hash of the key: an image's priority is the hash less
    the number of its cluster's images dealt before it. So cuts are nested, and any one takes from two clusters numbers
    that differ by 1 at most, unless the smaller one is used up.

    Args:
        keys: N of them, unique.
        clusters: (N,), −1: belongs to none.
        seed: of the hash.

    Returns:
        float64 (N,), NaN for images without a cluster.
    """
    shuffled = random_priority(keys, seed ^ _SALT)
    order = np.lexsort((-shuffled, clusters))
    _, first, members = np.unique(clusters[order], return_index=True, return_counts=True)
    dealt = np.empty(len(clusters), np.float64)
    dealt[order] = np.arange(len(order)) - np.repeat(first, members)
    return np.where(clusters < 0, np.nan, shuffled - dealt)
