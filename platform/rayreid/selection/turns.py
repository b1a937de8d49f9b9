"""Turns of target images: each in turn takes the most similar image of the pool that is not yet taken."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from rayreid.compiled_loops import compiled
from rayreid.neighbours.kernels import CHUNK, in_blocks, side_by_side, thread_pool
from rayreid.selection.features import Features
from rayreid.selection.whole_directions import Directions, blocks, whole_directions

LISTED = 2**24
"""Number of entries in the lists of all target images together: 128 MiB, and as much again while they grow."""
_IMAGES, _TARGETS = 2048, 4096
"""Number of images of either side that are compared at once: 32 MiB of cosines."""


@dataclass
class _Lists:
    """The most similar images of the pool for each target image, as found so far.

    Attributes:
        entries: Codes of image and cosine, int64 (M, 2k), of which the first `lengths` are set; see `_offer`.
        lengths: Number of entries of each list, int64 (M,).
        floors: Cosine that a further entry needs, float32 (M,).
    """

    entries: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    floors: npt.NDArray[np.float32]


def places_by_turns(
    pool: Features, targets: Directions, mean: np.ndarray | None = None
) -> tuple[npt.NDArray[np.int64], dict[str, int]]:
    """Return the place of each image of a pool in the order of turns, and facts.

    Each target image has a list of its k most similar images, k = `LISTED` / M. A target image whose list is exhausted
    has no more turns. The images that are in no list follow in the order of the cosine to their nearest target image.

    Args:
        pool: Features of all images of the pool, N of them.
        targets: Directions of the target images, M of them, in the order of their turns.
        mean: The vector that was subtracted from their features.

    Returns:
        Places int64 (N,), 0 for the first, −1 for images that could not be decoded; ties go to the image of smaller
        row. The result is the same on any device and number of threads. Facts: `listed`, the length of a list, and
        `by_turns`, the number of images that were taken in a turn.
    """
    count = len(pool.keys)
    length = max(1, min(count, LISTED // len(targets)))
    lists = _Lists(
        np.empty((len(targets), 2 * length), np.int64),
        np.zeros(len(targets), np.int64),
        np.full(len(targets), -np.inf, np.float32),
    )
    cosines = np.full(count, -np.inf, np.float32)
    usable = np.zeros(count, bool)
    for rows, found in pool.parts():
        decoded = ~np.isnan(found[:, 0])
        usable[rows[decoded]] = True
        points = whole_directions(found[decoded], targets.whole.device, mean)
        _compare(points, rows[decoded].astype(np.int64), targets, lists, length, cosines)
    ordered = _ordered(lists, length)
    places = _take_turns(ordered, np.minimum(lists.lengths, length), count)
    by_turns = int((places >= 0).sum())
    rest = np.flatnonzero(usable & (places < 0))
    places[rest[np.argsort(-cosines[rest], kind="stable")]] = by_turns + np.arange(len(rest))
    return places, {"listed": length, "by_turns": by_turns}


def _compare(
    points: Directions,
    rows: npt.NDArray[np.int64],
    targets: Directions,
    lists: _Lists,
    length: int,
    cosines: npt.NDArray[np.float32],
) -> None:
    """Offer images to all lists, and set their cosine to the nearest target image."""
    with thread_pool() as pool:
        for mine in blocks(len(points), _IMAGES):
            for theirs in blocks(len(targets), _TARGETS):
                found = targets[theirs].cosines(points[mine])
                best = found.amax(dim=0).cpu().numpy()
                cosines[rows[mine]] = np.maximum(cosines[rows[mine]], best)
                parts = (lists.entries[theirs], lists.lengths[theirs], lists.floors[theirs])
                offer = partial(_offer, found.cpu().numpy(), rows[mine], *parts, length)
                side_by_side(pool, in_blocks(offer, len(found), -(-len(found) // torch.get_num_threads())))


@compiled()
def _offer(
    cosines: np.ndarray,
    rows: np.ndarray,
    entries: np.ndarray,
    lengths: np.ndarray,
    floors: np.ndarray,
    length: int,
    low: int,
    high: int,
) -> None:
    """Add images to the lists `low` … `high` − 1; a list of 2k entries is cut to the k best ones.

    An entry's code orders by cosine, then by descending row: the bits of a float32, made to ascend with its value, are
    its upper half.
    """
    bits = cosines.view(np.int32)
    for target in range(low, high):
        for start in range(0, len(rows), CHUNK):
            stop = min(start + CHUNK, len(rows))
            if not _any_above(cosines[target, start:stop], floors[target]):
                continue
            for image in range(start, stop):
                if not cosines[target, image] >= floors[target]:
                    continue
                ascending = np.int64(bits[target, image])
                if ascending < 0:
                    ascending ^= np.int64(0x7FFFFFFF)
                entries[target, lengths[target]] = (ascending << 32) + (np.int64(0xFFFFFFFF) - rows[image])
                lengths[target] += 1
                if lengths[target] == entries.shape[1]:
                    best = np.partition(entries[target], length)[length:]
                    entries[target, :length] = best
                    lengths[target], floors[target] = length, _cosine(best[0])


@compiled()
def _any_above(cosines: np.ndarray, floor: np.float32) -> bool:
    above = False
    for cosine in cosines:
        above |= cosine >= floor
    return above


@compiled()
def _cosine(code: int) -> np.float32:
    """Return the cosine in a code."""
    bits = np.empty(1, np.int32)
    bits[0] = code >> 32
    if bits[0] < 0:
        bits[0] ^= np.int32(0x7FFFFFFF)
    return bits.view(np.float32)[0]


def _ordered(lists: _Lists, length: int) -> npt.NDArray[np.int64]:
    """Return the rows of each list's images (M, k), the most similar first; entries after the last are arbitrary."""
    rows = np.empty((len(lists.lengths), length), np.int64)
    for target, filled in enumerate(lists.lengths):
        best = np.sort(lists.entries[target, :filled])[::-1][:length]
        rows[target, : len(best)] = 0xFFFFFFFF - (best & 0xFFFFFFFF)
    return rows


@compiled()
def _take_turns(lists: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    """Return the place of each image in the order in which it is taken, int64 (N,), −1 for those that are in no list.

    Args:
        lists: Rows of images (M, k), int64.
        lengths: Number of entries of each list (M,).
        count: Number of images, N.
    """
    places = np.full(count, -1, np.int64)
    following = np.zeros(len(lists), np.int64)
    taken, before = 0, -1
    while taken > before:
        before = taken
        for target in range(len(lists)):
            while following[target] < lengths[target] and places[lists[target, following[target]]] >= 0:
                following[target] += 1
            if following[target] < lengths[target]:
                places[lists[target, following[target]]] = taken
                taken += 1
    return places
