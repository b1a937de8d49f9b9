"""Greedy leaders within cells: each image joins the most similar leader of its cell, or becomes a leader itself.

Cells do not touch one another, so that pieces of some cells each can be worked on anywhere.
"""

import numpy as np
import numpy.typing as npt
import torch

from rayreid.compiled_loops import compiled
from rayreid.selection.features import Features, take
from rayreid.selection.whole_directions import Directions, blocks, nearest, whole_directions

_HELD = 2**20
"""Number of images whose features are in memory at once, in float16: 0.8 GB at 384 dimensions. The pieces that are
worked on at once share it, as if all were on one machine."""
_WORTH_A_PIECE = 2**16
"""Number of images for which a piece is worth reading the features of the pool once more."""
_BLOCK = 1024
"""Number of images of a cell that are compared with its leaders, and with one another, at once."""
_SAME = 1 - 1e-6
"""Greatest threshold: the cosine of a feature with itself is 1 but for rounding in float32."""

Piece = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Rows of the images of some cells, cell by cell; and the number of images of each cell."""


def pieces_of(rows: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], at_once: int) -> list[Piece]:
    """Return pieces of whole cells: rows of the images, cell by cell, and the number of images of each cell.

    Args:
        rows: Rows of the images, cell by cell.
        counts: Number of images of each cell.
        at_once: How many pieces are worked on at once.
    """
    counts = counts[counts > 0]
    ends = np.cumsum(counts)
    size = max(_HELD // at_once, _WORTH_A_PIECE)
    number = max(-(-len(rows) // size), min(at_once, len(rows) // _WORTH_A_PIECE))
    wished = np.arange(1, number + 1) * len(rows) / max(number, 1)
    lasts = np.unique(np.searchsorted(ends, wished.astype(np.int64)))
    pieces, first = [], 0
    for last in lasts:
        pieces.append((rows[ends[first] - counts[first] : ends[last]], counts[first : last + 1]))
        first = last + 1
    return pieces


def leaders_in(
    pool: Features, device: torch.device, mean: npt.NDArray[np.float64] | None, similarity: float, piece: Piece
) -> npt.NDArray[np.int64]:
    """Return the row of the leader of each image of a piece, int64 (n,). The pool is read once.

    Args:
        pool: Features of the pool.
        device: Device on which to compute.
        mean: A vector to subtract from the features.
        similarity: Smallest cosine of an image with its leader.
        piece: See `pieces_of`.
    """
    rows, counts = piece
    held = np.sort(rows)
    features = take(pool, held)
    leaders = np.empty_like(rows)
    for end, count in zip(np.cumsum(counts), counts, strict=True):
        cell = rows[end - count : end]
        points = whole_directions(features[np.searchsorted(held, cell)], device, mean)
        leaders[end - count : end] = cell[_leaders(points, similarity)]
    return leaders


def _leaders(points: Directions, similarity: float) -> npt.NDArray[np.int64]:
    """Return the place of the leader of each direction, int64 (n,); a leader is its own.

    A block of directions is compared with the leaders found before, then its members are compared with one another, so
    that memory grows with the number of images in a cell, not with its square.
    """
    found = np.empty(len(points), np.int64)
    leaders = Directions(torch.empty_like(points.whole), torch.empty_like(points.inverse))
    places = np.empty(len(points), np.int64)
    count = 0
    for block in blocks(len(points), _BLOCK):
        mine = points[block]
        cosines, best = (part.cpu().numpy() for part in nearest(mine, leaders[:count]))
        within = mine.cosines(mine).cpu().numpy()
        joined = _join(within, cosines, places[best], np.float32(min(similarity, _SAME)), block.start)
        new = np.flatnonzero(joined == np.arange(block.start, block.stop))
        slots = slice(count, count + len(new))
        own = mine[torch.from_numpy(new).to(mine.whole.device)]
        leaders.whole[slots], leaders.inverse[slots], places[slots] = own.whole, own.inverse, new + block.start
        found[block] = joined
        count += len(new)
    return found


@compiled()
def _join(
    within: np.ndarray, cosines: np.ndarray, leaders: np.ndarray, similarity: np.float32, start: int
) -> np.ndarray:
    """Return the place of the leader of each image of a block, in order.

    Args:
        within: Cosines of the images with one another, float32 (n, n).
        cosines: Cosine of each with the nearest earlier leader, float32 (n,); −∞ if there is none.
        leaders: Place of that leader, int64 (n,).
        similarity: Smallest cosine with a leader.
        start: Place of the first image of the block.
    """
    joined = np.empty(len(cosines), np.int64)
    new = np.empty(len(cosines), np.int64)
    count = 0
    for image in range(len(cosines)):
        greatest, leader = cosines[image], leaders[image]
        for other in new[:count]:
            if within[image, other] > greatest:
                greatest, leader = within[image, other], start + other
        if not greatest >= similarity:
            leader = start + image
            new[count] = image
            count += 1
        joined[image] = leader
    return joined
