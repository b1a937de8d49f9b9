"""Features of a pool in parts, with groups of near-duplicates planted in it."""

from collections.abc import Iterator

import numpy as np

from rayreid.selection.features import Features


def unit(points: np.ndarray) -> np.ndarray:
    """Return points in the type and length of stored features."""
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


def planted(people: int, copies: int, spread: float, dimensions: int = 16, seed: int = 0) -> np.ndarray:
    """Return features (people × copies, dimensions): `copies` at a distance of about `spread` from each person's."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(unit(rng.standard_normal((people, dimensions))).astype(np.float64), copies, axis=0)
    return unit(centres + spread * dimensions**-0.5 * rng.standard_normal(centres.shape))


def in_parts(
    features: np.ndarray, parts: int = 1, undecodable: tuple[int, ...] = (), shuffled: bool = False
) -> Features:
    """Return features as those of a store of that many shards, whose images are `0000.jpg`, `0001.jpg`, …"""
    rows = np.arange(len(features))
    if shuffled:
        rows = np.random.default_rng(parts).permutation(rows)
    stored = features.copy()
    stored[list(undecodable)] = np.nan

    def parts_of() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for some in np.array_split(rows, parts):
            yield np.sort(some), stored[np.sort(some)]

    return Features([f"{row:04d}.jpg" for row in range(len(features))], parts_of)
