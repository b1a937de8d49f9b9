"""Features without what all images of a pool have in common."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rayreid.selection.similarity import Features

_LEAST = 1e-6
"""Length below which a centred feature is left at nearly zero, for its direction is noise."""


def mean_feature(pool: Features) -> npt.NDArray[np.float64]:
    """Return the mean (D,) of the features of the images that could be decoded."""
    total, count = np.zeros(0), 0
    for _, found in pool.parts():
        usable = found[~np.isnan(found[:, 0])]
        total = usable.sum(axis=0, dtype=np.float64) + (total if count else 0)
        count += len(usable)
    return total / max(1, count)


def centred(features: Features, mean: npt.NDArray[np.float64]) -> Features:
    """Return features from which a mean is subtracted, float32 of length 1; NaN stays NaN."""

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows, found in features.parts():
            moved = found.astype(np.float32) - mean.astype(np.float32)
            yield rows, moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), _LEAST)

    return Features(features.keys, parts)
