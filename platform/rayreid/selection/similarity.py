"""The strategy `target_similarity`, and the nearest neighbours by cosine among a target's images or cluster centres."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rayreid.selection.features import Features, centred, mean_feature, take, usable_rows
from rayreid.selection.strategies import Priority, random_priority
from rayreid.selection.turns import places_by_turns
from rayreid.selection.whole_directions import whole_directions

Mode = Literal["nearest", "round_robin"]

_BLOCK = 8192
"""Number of rows of either side that are multiplied at once: 256 MiB of similarities."""


def target_similarity(
    pool: Features,
    device: torch.device,
    targets: Sequence[Features],
    mode: Mode = "nearest",
    centre: bool = False,
) -> tuple[Priority, dict[str, int]]:
    """Return priorities by similarity to the targets' images, and facts.

    Args:
        pool: Features of all images of the pool, N of them.
        device: Device on which to compute.
        targets: Features of each target's training images.
        mode: "nearest": the priority is the cosine to the nearest image of any target. Targets' looks that many images
            of the pool share come first. "round_robin": each target image in turn takes the most similar image not yet
            taken, and the priority is minus the place in this order; see `places_by_turns`.
        centre: Whether to subtract the pool's mean feature before cosines are computed.

    Returns:
        Priorities float64 (N,), NaN for images that could not be decoded; and facts: `target_images`, and those of
        `places_by_turns`.
    """
    mean = mean_feature(pool) if centre else None
    if mode == "round_robin":
        in_turn = whole_directions(_in_order_of_turns(targets), device, mean)
        places, facts = places_by_turns(pool, in_turn, mean)
        return np.where(places < 0, np.nan, -places.astype(np.float64)), {"target_images": len(in_turn), **facts}
    if mean is not None:
        pool, targets = centred(pool, mean), [centred(target, mean) for target in targets]
    references = [theirs[~np.isnan(theirs[:, 0])] for target in targets for _, theirs in target.parts()]
    cosines, _ = nearest_in_parts(pool, np.concatenate(references), device)
    return cosines, {"target_images": sum(map(len, references))}


def _in_order_of_turns(targets: Sequence[Features]) -> np.ndarray:
    """Return the features of the targets' images (M, D), ordered by a hash of their keys.

    Any number of first turns is then a sample of the targets' images.
    """
    features, hashes = [], []
    for target in targets:
        rows = usable_rows(target)
        features.append(take(target, rows))
        hashes.append(random_priority([target.keys[row] for row in rows], 0))
    return np.concatenate(features)[np.argsort(-np.concatenate(hashes), kind="stable")]


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
