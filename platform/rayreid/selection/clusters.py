"""The strategy `cluster`: even sampling over clusters, so that every kind of image is equally frequent."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rayreid.neighbours.knn import require_faiss
from rayreid.selection.features import Features, take, usable_rows
from rayreid.selection.filelist import Keys
from rayreid.selection.similarity import nearest_in_parts
from rayreid.selection.strategies import Priority, random_priority

SAMPLE = 256
"""Maximum number of images per cluster from which centres are computed; more change them little (faiss's own rule)."""
_ROUNDS = 20
_SALT = 0xC1057E25
"""Salt that makes the order within clusters differ from that of the strategy `random` with the same seed."""


def cluster_priority(
    pool: Features, device: torch.device, seed: int, clusters: int | str
) -> tuple[Priority, dict[str, int]]:
    """Return priorities that distribute every cut evenly over clusters of the pool, and the number of clusters.

    Args:
        pool: Features of all images of the pool, N of them.
        device: Device on which to find each image's cluster.
        seed: Seed of the clusters and of the order within them.
        clusters: Wanted number of clusters; see `cluster_count`.

    Returns:
        Priorities float64 (N,), NaN for images that could not be decoded; and facts.
    """
    centres = _centres(pool, clusters, seed)
    _, places = nearest_in_parts(pool, centres, device)
    return even_priority(pool.keys, places, seed), {"clusters": len(centres)}


def pool_clusters(pool: Features, device: torch.device, seed: int, clusters: int | str) -> npt.NDArray[np.int64]:
    """Return the cluster of each image of a pool by k-means, int64 (N,), −1 for images that could not be decoded.

    Args:
        pool, device, seed, clusters: See `cluster_priority`.
    """
    _, places = nearest_in_parts(pool, _centres(pool, clusters, seed), device)
    return places


def _centres(pool: Features, clusters: int | str, seed: int) -> npt.NDArray[np.float32]:
    """Return cluster centres computed from a sample of the pool; they do not depend on the division into shards."""
    usable = usable_rows(pool)
    count = cluster_count(len(usable), clusters)
    drawn = np.sort(np.random.default_rng(seed).permutation(usable)[: SAMPLE * count])
    return find_centres(take(pool, drawn).astype(np.float32), count, seed)


def cluster_count(images: int, wanted: int | str) -> int:
    """Return the number of clusters: the wanted number or, for `auto`, the square root of the number of images.

    There are never more clusters than images.
    """
    return min(images, round(math.sqrt(images)) if wanted == "auto" else int(wanted))


def find_centres(features: npt.NDArray[np.float32], count: int, seed: int) -> npt.NDArray[np.float32]:
    """Return cluster centres by spherical k-means.

    Args:
        features: Features float32 (N, D), of length 1; a sample of `SAMPLE` images per cluster is enough.
        count: Number of clusters, at most N.
        seed: Seed of the initial centres.

    Returns:
        Centres float32 (count, D), of length 1.

    Raises:
        UserError: The faiss library cannot be loaded.
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


def even_priority(
    keys: Keys, clusters: npt.NDArray[np.integer], seed: int, ranks: npt.NDArray[np.int64] | None = None
) -> Priority:
    """Return priorities by which every cut takes evenly from all clusters that still have images.

    Clusters give one image each in turn, in the order of a seeded hash of the key: an image's priority is the hash
    minus the number of images that its cluster gave before it. Cuts are therefore nested, and the numbers that a cut
    takes from two clusters differ by at most 1, unless the smaller cluster is exhausted.

    Args:
        keys: Keys of the images, N of them, unique.
        clusters: Cluster of each image (N,), −1 for none.
        seed: Seed of the hash.
        ranks: Order in which a cluster gives its images, int64 (N,), the smallest first; by default that of the hash.

    Returns:
        Priorities float64 (N,), NaN for images without a cluster.
    """
    shuffled = random_priority(keys, seed ^ _SALT)
    order = np.lexsort((-shuffled if ranks is None else ranks, clusters))
    _, first, members = np.unique(clusters[order], return_index=True, return_counts=True)
    dealt = np.empty(len(clusters), np.float64)
    dealt[order] = np.arange(len(order)) - np.repeat(first, members)
    return np.where(clusters < 0, np.nan, shuffled - dealt)


@dataclass(frozen=True)
class Crowd:
    """The cluster that gives the most of what is kept.

    Attributes:
        kept: Its share of the kept images.
        pool: Its share of the pool's images.
    """

    kept: float
    pool: float

    @property
    def dominates(self) -> bool:
        """Return whether it gives more than a quarter of what is kept, and more than four times its share of the pool.

        Both numbers are a convention: they are far beyond what a fair choice among hundreds of clusters would give.
        """
        return self.kept > 0.25 and self.kept > 4 * self.pool


def largest_crowd(clusters: npt.NDArray[np.integer], chosen: npt.NDArray[np.int64]) -> Crowd:
    """Return the cluster that gives the most of a subset.

    Args:
        clusters: Cluster of each image of the pool (N,), −1 for none.
        chosen: Rows of the kept images, at least one; each has a cluster.
    """
    kept = np.bincount(clusters[chosen])
    largest = int(kept.argmax())
    return Crowd(kept[largest] / len(chosen), float((clusters == largest).mean()))
