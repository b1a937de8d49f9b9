"""Spherical k-means on directions in whole numbers: the same clusters on any device and number of threads."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayreid.selection.features import Features, take, wanted_parts
from rayreid.selection.whole_directions import Directions, blocks, nearest, rounded_directions, whole_directions

_SUMMED = 16_384
"""Number of directions that are added to the sums of their clusters at once."""
_GRAIN = 2.0**20
"""Greatest entry of a sum of directions, after rounding to whole numbers; sums of squares are then exact."""


def spherical_kmeans(points: Directions, count: int, seed: int, rounds: int) -> Directions:
    """Return cluster centres by spherical k-means.

    A cluster that loses all its points takes the point that is farthest from its centre.

    Args:
        points: The points, N of them.
        count: Number of clusters, at most N.
        seed: Seed of the initial centres, which are points.
        rounds: Number of iterations.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(len(points))[:count])
    centres = points[torch.from_numpy(drawn).to(points.whole.device)]
    for _ in range(rounds):
        cosines, clusters = nearest(points, centres)
        empty = (torch.bincount(clusters, minlength=count) == 0).nonzero().flatten()
        far = torch.sort(cosines, stable=True).indices[: len(empty)]
        centres = _means(points, clusters, count)
        centres.whole[empty], centres.inverse[empty] = points.whole[far], points.inverse[far]
    return centres


def _means(points: Directions, clusters: Tensor, count: int) -> Directions:
    """Return the direction of the sum of each cluster's unit vectors; of zeros for an empty cluster."""
    sums = torch.zeros(count, points.whole.shape[1], dtype=torch.float64, device=clusters.device)
    for block in blocks(len(points), _SUMMED):
        sums.index_add_(0, clusters[block], points.whole[block].double())
    largest = sums.abs().amax(dim=1, keepdim=True).clamp(min=1)
    return rounded_directions((sums * (_GRAIN / largest)).round_())


def sampled_centres(
    pool: Features,
    rows: npt.NDArray[np.int64],
    count: int,
    device: torch.device,
    *,
    seed: int,
    sample: int,
    rounds: int,
    mean: npt.NDArray[np.float64] | None = None,
) -> Directions:
    """Return cluster centres computed from a sample of a pool; they do not depend on the division into parts.

    Args:
        pool: Features of the pool.
        rows: Rows of the images to cluster, ascending.
        count: Number of clusters, at most the number of rows.
        device: Device on which to compute.
        seed: Seed of the sample and of the initial centres.
        sample: Number of images per cluster in the sample.
        rounds: Number of iterations.
        mean: A vector to subtract from the features.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(rows)[: sample * count])
    return spherical_kmeans(whole_directions(take(pool, drawn), device, mean), count, seed, rounds)


def clusters_of(
    pool: Features, rows: npt.NDArray[np.int64], centres: Directions, mean: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.int64]:
    """Return the cluster of each of some images, int64 (n,).

    Args:
        pool: Features of the pool.
        rows: Rows of the images (n,), ascending; their features are finite.
        centres: Cluster centres, on the device on which to compute.
        mean: The vector that was subtracted from the features of the centres.
    """
    clusters = np.empty(len(rows), np.int64)
    for places, found in wanted_parts(pool, rows):
        _, nearest_centres = nearest(whole_directions(found, centres.whole.device, mean), centres)
        clusters[places] = nearest_centres.cpu().numpy()
    return clusters
