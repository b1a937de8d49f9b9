"""What the order of a pool's priorities means: closeness to the target, or only a direction, brightness or size.

The catastrophic forgetting score is a cosine between two networks. It says how close an image is to the target only if
the target proxy θt keeps what the source proxy θs knew. If the features of θt all point one way, v, the score of every
image is ⟨θs(x), v⟩, whatever that direction stands for. All figures are computed on a sample of the pool, and none
needs the origin of an image.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from rayreid.selection.overlap import rank_correlation

Array = npt.NDArray[np.floating[Any]]

ROUNDING = {"fp32": 1e-5, "fp16": 2e-4, "bf16": 1.3e-3}
"""Error of a score by the precision of the forward pass. Those of fp32 and bf16 were measured (docs/performance.md);
fp16 has an eighth of the rounding error of bf16."""

NARROW = 3.0
"""Standard deviation of the scores in units of their error below which their order is mostly noise: at 3, a tenth of
the variance is error."""

DIRECTION = 0.95
"""Rank correlation with the projection of θs on one direction from which the score is nothing else: 0.956 was measured
for a θt whose mean feature has the length 0.950, and 0.996 for a collapsed one (docs/results.md)."""

APPEARANCE = 0.6
"""Rank correlation with brightness or size from which a score counts as a measure of it: more than a third (0.36) of
the variance of its ranks. A score that separated the target's domain with AUC 0.79 had 0.46 with brightness."""

INVERTED_AUC = 0.45
"""AUC of the target's own domain below which a high score means distance."""

INVERTED_RANKS = -0.1
"""Rank correlation with the similarity to the target below which a high score means distance. If the domain is half of
the pool, an AUC of 0.45 is a rank correlation of −0.09 with belonging to it."""

_CERTAIN = 3.0  # standard errors: below this, an inversion may be chance


class Regime(StrEnum):
    """What decides the order of the scores."""

    NARROW = "narrow"
    """Mostly rounding."""
    DIRECTION = "direction"
    """The projection of θs on one direction."""
    INVERTED = "inverted"
    """Distance from the target."""
    BRIGHTNESS = "brightness"
    """The brightness of the images."""
    SIZE = "size"
    """The height or the area of the images."""


@dataclass(frozen=True)
class Diagnosis:
    """Figures of the priorities of a sample; None: not known, or not defined because all images have the same value.

    Attributes:
        images: Number of images in the sample.
        mean: Mean priority.
        std: Standard deviation of the priorities.
        rounding: Error of a priority that the precision of the forward pass causes.
        source_mean_length: Length of the mean of the unit features of θs; 1 if all point one way.
        target_mean_length: The same of θt; with several targets, the mean over these.
        rank_direction: Rank correlation of the priorities with ⟨θs(x), v⟩, v the mean of the unit features of θt.
        rank_similarity: Rank correlation with the cosine of θs(x) to the nearest training image of the target.
        rank_brightness: Rank correlation with the mean brightness of an image.
        rank_height: Rank correlation with the height of an image in pixels.
        rank_area: Rank correlation with the number of its pixels.
    """

    images: int
    mean: float
    std: float
    rounding: float
    source_mean_length: float | None = None
    target_mean_length: float | None = None
    rank_direction: float | None = None
    rank_similarity: float | None = None
    rank_brightness: float | None = None
    rank_height: float | None = None
    rank_area: float | None = None

    def figures(self) -> dict[str, float]:
        """Return the figures that are known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Separation:
    """How well priorities separate the target's own domain from the rest of the pool.

    Attributes:
        auc: The AUC.
        own: Number of images of the target's own domain.
        others: Number of the other images.
    """

    auc: float
    own: int
    others: int

    @property
    def error(self) -> float:
        """Standard error of the AUC if the priorities were random (that of the Mann-Whitney statistic)."""
        return float(np.sqrt((self.own + self.others + 1) / (12 * self.own * self.others)))


@dataclass(frozen=True)
class Meaning:
    """The meaning of a score in words.

    Attributes:
        reasons: A sentence for each regime that applies; empty if the score has no peculiarity.
    """

    reasons: dict[Regime, str]

    @property
    def word(self) -> str:
        """The regimes in a few words; `usual` if there are none."""
        return ", ".join(self.reasons) or "usual"


def diagnose(
    priority: Array,
    rounding: float,
    *,
    heights: npt.ArrayLike,
    widths: npt.ArrayLike,
    brightness: Array | None = None,
    source: Array | None = None,
    targets: Sequence[Array] = (),
    similarity: Array | None = None,
) -> Diagnosis:
    """Return the figures of a sample of a pool.

    Args:
        priority: Priorities (n,), n ≥ 1, all finite.
        rounding: Error of a priority, see `ROUNDING`.
        heights: Heights of the images in pixels, (n,).
        widths: Their widths, (n,).
        brightness: Mean brightness of each image, (n,).
        source: Features of θs, of length 1, (n, D).
        targets: Features of the θt of each target, of length 1, (n, D) each.
        similarity: Cosine of θs(x) to the nearest training image of the target, (n,).
    """
    heights, widths = np.asarray(heights, np.float64), np.asarray(widths, np.float64)
    ranks = {"similarity": similarity, "brightness": brightness, "height": heights, "area": heights * widths}
    means = [_mean(features) for features in targets]
    if source is not None and means:
        ranks["direction"] = source.astype(np.float64) @ np.mean(means, axis=0)
    correlations = {f"rank_{name}": _known(priority, values) for name, values in ranks.items() if values is not None}
    return Diagnosis(
        images=len(priority),
        mean=float(np.mean(priority, dtype=np.float64)),
        std=float(np.std(priority, dtype=np.float64)),
        rounding=rounding,
        source_mean_length=None if source is None else _length(_mean(source)),
        target_mean_length=float(np.mean([_length(mean) for mean in means])) if means else None,
        **correlations,
    )


def interpret(figures: Diagnosis, separation: Separation | None = None) -> Meaning:
    """Say in words what the order of the priorities means.

    Args:
        figures: Figures of the priorities.
        separation: How well they separate the target's own domain, if the origins of the images are known; it then
            decides whether a high score means distance, and otherwise the similarity of θs to the target does.
    """
    reasons = {
        Regime.NARROW: _narrow(figures),
        Regime.DIRECTION: _direction(figures),
        Regime.INVERTED: _inverted(figures) if separation is None else _separates_inversely(separation),
        Regime.BRIGHTNESS: _appearance({"brightness": figures.rank_brightness}),
        Regime.SIZE: _appearance({"height": figures.rank_height, "area": figures.rank_area}),
    }
    return Meaning({regime: reason for regime, reason in reasons.items() if reason is not None})


def _narrow(figures: Diagnosis) -> str | None:
    if figures.std >= NARROW * figures.rounding:
        return None
    return (
        f"the scores differ by little more than rounding (standard deviation {figures.std:.2g}, error of a score about "
        f"{figures.rounding:.2g}), so that noise decides much of their order"
    )


def _direction(figures: Diagnosis) -> str | None:
    if figures.rank_direction is None or abs(figures.rank_direction) <= DIRECTION:
        return None
    length = figures.target_mean_length
    return (
        f"the score is the projection of θs on one direction (rank correlation {figures.rank_direction:.3f}): the "
        f"features of θt have collapsed to it (their mean has length {length:.3f}), so that a high score need not mean "
        "closeness to the target"
    )


def _inverted(figures: Diagnosis) -> str | None:
    found = figures.rank_similarity
    if found is None or found >= min(INVERTED_RANKS, -_CERTAIN / np.sqrt(max(1, figures.images - 1))):
        return None
    return (
        f"a high score means distance here: the images most similar to the target moved most (rank correlation with "
        f"the similarity of θs to the target {found:.2f})"
    )


def _separates_inversely(separation: Separation) -> str | None:
    if separation.auc >= min(INVERTED_AUC, 0.5 - _CERTAIN * separation.error):
        return None
    return (
        f"a high score means distance here: images of the target's own domain rank below the others (AUC "
        f"{separation.auc:.3f})"
    )


def _appearance(correlations: dict[str, float | None]) -> str | None:
    """Return a sentence about the property with the greatest rank correlation, if it exceeds the threshold."""
    known = {name: value for name, value in correlations.items() if value is not None}
    name = max(known, key=lambda one: abs(known[one]), default=None)
    if name is None or abs(known[name]) <= APPEARANCE:
        return None
    return f"the order of the scores follows the {name} of the images (rank correlation {known[name]:.2f})"


def _known(first: Array, second: Array) -> float | None:
    found = rank_correlation(first.astype(np.float64), np.asarray(second, np.float64))
    return found if np.isfinite(found) else None


def _mean(features: Array) -> Array:
    return features.mean(axis=0, dtype=np.float64)


def _length(mean: Array) -> float:
    return float(np.linalg.norm(mean))
