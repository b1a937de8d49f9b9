"""The strategy `combine`: parts in their order, some of which remove images, and the weighted mean of their ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayreid.errors import UserError
from rayreid.selection.strategies import Priority

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CombinedRanking:
    """A strategy that is combined with others.

    Attributes:
        name: What facts and messages call it.
        weight: Weight of its ranks; with 0 it only removes the images that have no priority.
        among: Function (images that are left, bool (N,)) → priorities float64 (N,), NaN for images to remove.
    """

    name: str
    weight: float
    among: Callable[[Mask], Priority]


def combine(parts: Sequence[CombinedRanking], images: int) -> tuple[Priority, dict[str, int]]:
    """Return the weighted mean of the ranks that several strategies give to the images that all of them leave.

    Ranks lie in [0, 1], 1 for the best image, and equal priorities have equal ranks; so no part decides more than its
    weight says because of the scale of its priorities.

    Args:
        parts: The strategies; each sees what the earlier ones leave. At least one has a weight.
        images: Number of images, N.

    Returns:
        Priorities float64 (N,), NaN for images that a part removes; and facts: how many each part removes.

    Raises:
        UserError: The parts leave no image.
    """
    left, facts = np.ones(images, bool), {}
    priorities = []
    for part in parts:
        priorities.append(part.among(left))
        still = left & ~np.isnan(priorities[-1])
        facts[f"removed_by_{part.name}"] = int(left.sum() - still.sum())
        if not still.any():
            raise UserError(
                f"select.parts leave none of the pool's {images:,} images: {part.name} removes the last {left.sum():,}"
            )
        left = still
    weighted = [part.weight * _ranks(ranked[left]) for part, ranked in zip(parts, priorities, strict=True)]
    result = np.full(images, np.nan)
    result[left] = np.sum(weighted, axis=0) / sum(part.weight for part in parts)
    return result, facts


def _ranks(priority: Priority) -> Priority:
    """Return ranks in [0, 1], ascending with the priority; equal ones have the mean of their ranks."""
    if len(priority) == 1:
        return np.ones(1)
    from scipy.stats import rankdata  # takes a second, in every process that imports this module

    return np.asarray((rankdata(priority) - 1) / (len(priority) - 1), dtype=np.float64)
