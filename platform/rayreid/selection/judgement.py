"""Figures of the images that selections keep, computed from features alone: before anything is trained on them.

The pool's features are read shard by shard, a few times in all, however many selections and cuts are compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rayreid.selection.clusters import cluster_count
from rayreid.selection.coverage import nearest_kept
from rayreid.selection.diversity import effective_rank, moments, normalised_entropy
from rayreid.selection.features import Features, centred, mean_feature, take, usable_rows
from rayreid.selection.kmeans import clusters_of, sampled_centres
from rayreid.selection.steps import Steps

SAMPLE = 8192
"""Number of pool images among which near-duplicates are counted, and most target images whose coverage is computed."""
NEAR = 0.95
"""Cosine of centred features from which two images count as near-duplicates."""
_CLUSTER_SAMPLE, _CLUSTER_ROUNDS = 128, 10
"""Number of images per cluster from which centres are computed, and of iterations of k-means."""
_SALT = 0x5A3D17E


@dataclass(frozen=True)
class Judgement:
    """Figures of one cut; NaN if they cannot be computed.

    Attributes:
        images: Number of kept images that could be decoded.
        coverage_mean: Mean, over the target's images, of the cosine to the nearest kept image, of centred features.
        coverage_median: Median of these cosines.
        coverage_p10: Their 10th percentile: how well the worst-covered tenth is covered.
        effective_rank: See `effective_rank`.
        cluster_entropy: See `normalised_entropy`.
        near_duplicates: Share of the kept images whose nearest other kept image has a cosine of at least `NEAR`.
    """

    images: int
    coverage_mean: float
    coverage_median: float
    coverage_p10: float
    effective_rank: float
    cluster_entropy: float
    near_duplicates: float


def judge(
    pool: Features, targets: Sequence[Features], selections: Sequence[Steps], cuts: int, device: torch.device, seed: int
) -> list[list[Judgement]]:
    """Return the figures of all cuts of some selections.

    Cosines are those of centred features: all images share much of what a network says of a crop of a
    person, so that cosines of the features themselves may be 0.99 for any two images.

    Args:
        pool: Features of all images of the pool, N of them.
        targets: Features of each target's training images; samples of at most `SAMPLE` of all are used.
        selections: The steps (N,) of each selection.
        cuts: Number of cuts of a selection, F.
        device: Device on which to compute.
        seed: Seed of the samples and of the clusters.

    Returns:
        For each selection, the figures of its F cuts.
    """
    steps = np.stack(selections)
    mean = mean_feature(pool)
    directions = centred(pool, mean)
    theirs = [found[~np.isnan(found[:, 0])] for target in targets for _, found in target.parts()]
    wanted = _sampled(np.concatenate(theirs), seed) - mean if theirs else np.empty((0, 0))
    covered = nearest_kept(wanted, directions, steps, cuts, device)
    usable = usable_rows(pool)
    rows = _sampled(usable, seed)
    others = nearest_kept(take(pool, rows) - mean, directions, steps, cuts, device, own=rows)
    counts, covariances = moments(pool, steps, cuts, device)
    clusters = _clusters(pool, usable, mean, device, seed)
    return [
        [
            _judgement(
                int(counts[one, number]),
                covered[one, number],
                covariances[one][number],
                np.bincount(clusters[(steps[one] <= number) & (clusters >= 0)], minlength=clusters.max() + 1),
                others[one, number, steps[one, rows] <= number],
            )
            for number in range(cuts)
        ]
        for one in range(len(steps))
    ]


def _clusters(
    pool: Features, rows: npt.NDArray[np.int64], mean: npt.NDArray[np.float64], device: torch.device, seed: int
) -> npt.NDArray[np.int64]:
    """Return the cluster of each image of the pool (N,), −1 for images that could not be decoded."""
    count = cluster_count(len(rows), "auto")
    centres = sampled_centres(
        pool, rows, count, device, seed=seed, sample=_CLUSTER_SAMPLE, rounds=_CLUSTER_ROUNDS, mean=mean
    )
    clusters = np.full(len(pool.keys), -1)
    clusters[rows] = clusters_of(pool, rows, centres, mean)
    return clusters


def _sampled(items: np.ndarray, seed: int) -> np.ndarray:
    """Return at most `SAMPLE` items along the first axis, in their order."""
    drawn = np.random.default_rng([seed, _SALT]).permutation(len(items))[:SAMPLE]
    return items[np.sort(drawn)]


def _judgement(
    images: int,
    covered: npt.NDArray[np.float32],
    covariance: npt.NDArray[np.float64],
    clusters: npt.NDArray[np.integer],
    others: npt.NDArray[np.float32],
) -> Judgement:
    usable = images > 0 and len(covered) > 0
    mean, median, tenth = (
        (covered.mean(dtype=np.float64), *np.percentile(covered, (50, 10))) if usable else (math.nan,) * 3
    )
    return Judgement(
        images,
        float(mean),
        float(median),
        float(tenth),
        effective_rank(covariance) if images > 1 else math.nan,
        normalised_entropy(clusters),
        float((others >= NEAR).mean()) if len(others) else math.nan,
    )
