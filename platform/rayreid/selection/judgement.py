"""Figures of the images that selections keep, computed from features alone: before anything is trained on them.

The pool's features are read shard by shard, a few times in all, however many selections and cuts are compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rayreid.errors import UserError
from rayreid.selection.centring import centred, mean_feature
from rayreid.selection.clusters import assign_clusters
from rayreid.selection.coverage import nearest_kept
from rayreid.selection.diversity import effective_rank, moments, normalised_entropy
from rayreid.selection.similarity import Features
from rayreid.selection.steps import Steps

SAMPLE = 8192
"""Number of pool images among which near-duplicates are counted, and most target images whose coverage is computed."""
NEAR = 0.95
"""Cosine of centred features from which two images count as near-duplicates."""
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

    Cosines are those of centred features (see `centred`): all images share much of what a network says of a crop of a
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
    found = [theirs[~np.isnan(theirs[:, 0])] for target in targets for _, theirs in centred(target, mean).parts()]
    wanted = _sample(np.concatenate(found), seed) if found else np.empty((0, 0), np.float32)
    covered = nearest_kept(wanted, directions, steps, cuts, device)
    drawn = np.sort(np.random.default_rng([seed, _SALT]).permutation(len(pool.keys))[:SAMPLE])
    rows, units = _features_of(directions, drawn)
    others = nearest_kept(units, directions, steps, cuts, device, own=rows)
    counts, covariances = moments(pool, steps, cuts, device)
    clusters, known = _clusters(pool, device, seed)
    return [
        [
            _judgement(
                int(counts[one, number]),
                covered[one, number],
                covariances[one][number],
                np.bincount(clusters[(steps[one] <= number) & (clusters >= 0)], minlength=known),
                others[one, number, steps[one, rows] <= number],
            )
            for number in range(cuts)
        ]
        for one in range(len(steps))
    ]


def _clusters(pool: Features, device: torch.device, seed: int) -> tuple[npt.NDArray[np.int64], int]:
    """Return the cluster of each image of the pool (N,), −1 for none, and their number; 0 without the library faiss."""
    try:
        return assign_clusters(pool, device, seed, "auto")
    except UserError:  # the other figures do not need faiss, which is an extra
        return np.full(len(pool.keys), -1), 0


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


def _features_of(pool: Features, wanted: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], np.ndarray]:
    """Return index rows and features of those among the wanted images that could be decoded."""
    rows: list[np.ndarray] = []
    units: list[np.ndarray] = []
    for here, found in pool.parts():
        mine = np.isin(here, wanted, assume_unique=True)
        block = np.asarray(found[mine])
        usable = ~np.isnan(block[:, 0])
        rows.append(here[mine][usable])
        units.append(block[usable])
    return np.concatenate(rows), np.concatenate(units)


def _sample(features: np.ndarray, seed: int) -> np.ndarray:
    drawn = np.random.default_rng([seed, _SALT]).permutation(len(features))[:SAMPLE]
    return features[np.sort(drawn)]
