"""The strategy `target_similarity`, and the nearest neighbours by cosine among a target's images or cluster centres."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rayreid.selection.filelist import Keys
from rayreid.selection.strategies import Priority

_BLOCK = 8192
"""Number of rows of either side that are multiplied at once: 256 MiB of similarities."""


@dataclass(frozen=True)
class Features:
    """Features of a store's images, or of some of them, larger than memory.

    Attributes:
        keys: The keys of all images of the store, N of them.
        parts: Function that yields index rows (n,) and features float16 (n, D) of length 1, with NaN for images that
            could not be decoded; every call starts from the beginning.
    """

    keys: Keys
    parts: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


def target_similarity(
    pool: Features, device: torch.device, targets: Sequence[Features]
) -> tuple[Priority, dict[str, int]]:
    """Return the cosine of each pool image to the nearest image of any target, and the number of target images.

    Args:
        pool: Features of all images of the pool, N of them.
        device: Device on which to compute.
        targets: Features of each target's training images.

    Returns:
        Cosines float64 (N,), NaN for images that could not be decoded; and facts.
    """
    references = [theirs[~np.isnan(theirs[:, 0])] for target in targets for _, theirs in target.parts()]
    cosines, _ = nearest_in_parts(pool, np.concatenate(references), device)
    return cosines, {"target_images": sum(map(len, references))}


def nearest_in_parts(
    pool: Features, references: np.ndarray, device: torch.device
) -> tuple[Priority, npt.NDArray[np.int64]]:
    """Return the reference of greatest cosine for each image of a pool.

    Args:
        pool: Features of all images of the pool, N of them.
        references: Features of the references (M, D), M ≥ 1.
        device: Device on which to compute.

    Returns:
        Cosines float64 (N,) and rows of `references` int64 (N,); NaN and −1 for images that could not be decoded.
    """
    cosines = np.full(len(pool.keys), np.nan)
    places = np.full(len(pool.keys), -1, np.int64)
    others = torch.from_numpy(references.astype(np.float32)).to(device)
    for rows, found in pool.parts():
        usable = ~np.isnan(found[:, 0])
        best, place = nearest(torch.from_numpy(found[usable].astype(np.float32)).to(device), others)
        cosines[rows[usable]] = best.cpu().numpy()
        places[rows[usable]] = place.cpu().numpy()
    return cosines, places


def nearest(features: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Return the reference of greatest cosine for each feature; ties go to the first reference.

    Args:
        features: Features (N, D), of any float type and length; they are normalised and multiplied in float32.
        references: Features of the references (M, D), M ≥ 1, on the same device.

    Returns:
        Cosines float32 (N,) and rows of `references` int64 (N,). A feature that is not finite has the cosine NaN.
    """
    cosines = features.new_full((len(features),), -torch.inf, dtype=torch.float32)
    rows = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    for part in _blocks(len(references)):
        directions = F.normalize(references[part].float(), dim=1)
        for block in _blocks(len(features)):
            best, place = (F.normalize(features[block].float(), dim=1) @ directions.T).max(dim=1)
            better = (best > cosines[block]) | best.isnan()
            cosines[block] = torch.where(better, best, cosines[block])
            rows[block] = torch.where(better, place + part.start, rows[block])
    return cosines, rows


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
