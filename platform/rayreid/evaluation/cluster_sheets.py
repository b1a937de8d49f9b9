"""Sheets of clusters of images: what lies at the centre and at the border, and what selections keep of each."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

BORDER = 6
"""Maximum number of border images of a sheet."""


@dataclass(frozen=True)
class ClusterSheet:
    """A cluster.

    Attributes:
        cluster: Number of the cluster.
        size: Number of its images.
        centre: The image nearest to its centre.
        border: The images farthest from its centre, the farthest first; without the image nearest to it.
        scores: Lowest, median and highest score by selection, in the order of the selections; None if no image has one.
        kept: Share of its images that each selection keeps, in [0, 1].
    """

    cluster: int
    size: int
    centre: int
    border: list[int]
    scores: list[tuple[float, float, float] | None]
    kept: list[float]


def cluster_sheets(
    clusters: np.ndarray, cosines: np.ndarray, scores: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]
) -> list[ClusterSheet]:
    """Return a sheet for each cluster that has images, by number.

    Args:
        clusters: Cluster of each image, int (n,).
        cosines: Cosine of each image to the centre of its cluster, (n,).
        scores: Scores by selection, float (n,), NaN for none.
        kept: Whether each selection keeps an image, bool (n,); the same selections.
    """
    if list(scores) != list(kept):
        raise ValueError("scores and kept name different selections")
    sheets = []
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        near_first = members[np.argsort(-cosines[members], kind="stable")].tolist()
        sheets.append(
            ClusterSheet(
                cluster=int(cluster),
                size=len(members),
                centre=near_first[0],
                border=near_first[:0:-1][:BORDER],
                scores=[_range(values[members]) for values in scores.values()],
                kept=[float(chosen[members].mean()) for chosen in kept.values()],
            )
        )
    return sheets


def _range(scores: np.ndarray) -> tuple[float, float, float] | None:
    known = scores[np.isfinite(scores)]
    return (float(known.min()), float(np.median(known)), float(known.max())) if len(known) else None
