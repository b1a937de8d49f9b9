"""Features like those of people: identities of uneven size and spread, in directions of uneven weight."""

from pathlib import Path

import numpy as np

IMAGES_PER_IDENTITY = 17
DECAY = 0.5  # a direction's spread falls with its number to this power
SPREAD = 0.8  # of an identity's images, in units of that of the identities; in the median
CAMERAS = 6
UNEVENNESS = 0.3  # of the spread among identities: deviation of its logarithm


def clustered_features(count: int, dimensions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(`count`, `dimensions`) float32 of length 1, ordered by identity, and the identities (`count`,) int64."""
    rng = np.random.default_rng(seed)
    identities = max(1, count // IMAGES_PER_IDENTITY)
    shares = rng.gamma(2.0, size=identities)
    pids = np.sort(rng.choice(identities, count, p=shares / shares.sum()))
    weights = (np.arange(1, dimensions + 1) ** -DECAY).astype(np.float32)
    centres = rng.standard_normal((identities, dimensions), dtype=np.float32)
    spread = SPREAD * np.exp(UNEVENNESS * rng.standard_normal(identities, dtype=np.float32))
    features = rng.standard_normal((count, dimensions), dtype=np.float32)
    features *= spread[pids, None]
    features += centres[pids]
    features *= weights
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, pids


def random_features(count: int, dimensions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """As `clustered_features`, but the features know nothing of the identities."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, dimensions), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, np.sort(rng.integers(0, max(1, count // IMAGES_PER_IDENTITY), count))


def save_sides(folder: Path, features: np.ndarray, pids: np.ndarray, queries: int, seed: int = 0) -> None:
    """Deal the images to `queries` queries and a gallery, each with a camera: six files, named as what is evaluated."""
    rng = np.random.default_rng(seed)
    order, camids = rng.permutation(len(features)), rng.integers(0, CAMERAS, len(features))
    for side, rows in (("query", np.sort(order[:queries])), ("gallery", np.sort(order[queries:]))):
        for name, values in (("features", features), ("pids", pids), ("camids", camids)):
            np.save(folder / f"{side}_{name}.npy", values[rows])


def load_sides(folder: Path) -> dict[str, np.ndarray]:
    """What `save_sides` wrote: the arguments of `evaluate_retrieval`."""
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}
