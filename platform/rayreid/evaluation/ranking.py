"""Ranks of true matches from cosine similarities, without forming the distance matrix or sorting a row.

The rank of a true match is one plus the number of valid gallery images that beat it: by a higher similarity, or by
an equal one and an earlier place in the gallery. They are counted by comparison or, where few images beat a query's
last match, found by sorting those few.

Similarities come from products of one fixed shape, `TILE` queries (padded with zeros) by the gallery: products of other
shapes round otherwise, and a near tie would then turn with a query's neighbours or the block size.
"""

from collections.abc import Iterator
from copy import copy

import numpy as np
import torch

from rayreid.errors import UserError

JUNK = -1  # pid of images that are nobody's: out of query and gallery
UNKNOWN_CAMERA = -1  # camid that equals no camera, itself included
TILE = 256  # queries in one matrix product
FEW_RIVALS = 1 / 16  # of the gallery; up to here sorting is quicker than counting
SMALLEST_NORM = 1e-12  # a zero feature stays zero

Array = np.ndarray | torch.Tensor


class ImageSet:
    """Query or gallery, checked: normalised features and labels (−1 where none are given)."""

    def __init__(self, name: str, features: Array, pids: Array | None, camids: Array | None):
        raw = torch.as_tensor(features).float()
        if raw.ndim != 2:
            raise UserError(f"{name} features must be (images, dimensions), not {tuple(raw.shape)}")
        if not len(raw):
            raise UserError(f"the {name} is empty: no image to rank")
        norms = torch.linalg.vector_norm(raw, dim=1, keepdim=True)
        broken = torch.isfinite(norms).logical_not().flatten().nonzero()
        if len(broken):
            raise UserError(
                f"{len(broken)} of {len(raw)} {name} features hold NaN or infinity (first: row {int(broken[0])}):"
                " the model that made them has diverged"
            )
        self.features = raw / norms.clamp(min=SMALLEST_NORM)
        self.pids, self.camids = (
            np.full(len(raw), JUNK) if labels is None else torch.as_tensor(labels).cpu().numpy()
            for labels in (pids, camids)
        )
        for label, values in (("pids", self.pids), ("camids", self.camids)):
            if values.shape != (len(raw),):
                raise UserError(f"{name}: {len(raw)} features but {label} of shape {values.shape}")
        self.junk = self.pids == JUNK

    def __len__(self) -> int:
        return len(self.features)

    def without_junk(self) -> "ImageSet":
        """The same side with its identified images only."""
        if not self.junk.any():
            return self
        part = copy(self)
        keep = ~self.junk
        part.pids, part.camids, part.junk = self.pids[keep], self.camids[keep], self.junk[keep]
        part.features = self.features[torch.from_numpy(keep).to(self.features.device)]
        return part


def check_widths(query: ImageSet, gallery: ImageSet) -> None:
    """Raise a UserError where query and gallery features cannot be compared."""
    q, g = query.features.shape[1], gallery.features.shape[1]
    if q != g:
        raise UserError(f"query features have {q} dimensions, gallery features {g}: two different models made them")


class Relatives:
    """Item i: the gallery's rows of query i's identity, ascending, as (true matches, seen by the same camera)."""

    def __init__(self, query: ImageSet, gallery: ImageSet):
        self.rows = np.argsort(gallery.pids, kind="stable")
        pids = gallery.pids[self.rows]
        self.low = np.searchsorted(pids, query.pids, side="left")
        self.high = np.searchsorted(pids, query.pids, side="right")
        self.query_camids, self.gallery_camids = query.camids, gallery.camids[self.rows]

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(self.low[i], self.high[i])
        rows, camid = self.rows[span], self.query_camids[i]
        seen = (self.gallery_camids[span] == camid) & (camid != UNKNOWN_CAMERA)
        return rows[~seen], rows[seen]


def true_ranks(row: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """Ranks from 1, ascending, of gallery rows `matches` (ascending) by the similarities `row` (G,)."""
    if not len(matches):
        return np.empty(0, np.int64)
    rivals = row >= row[matches].min()  # nothing below the last match can beat any
    if np.count_nonzero(rivals) <= FEW_RIVALS * len(row):
        rows = rivals.nonzero()[0]
        place = np.empty(len(rows), np.int64)
        place[np.argsort(-row[rows], kind="stable")] = np.arange(1, len(rows) + 1)
        ranks = place[np.searchsorted(rows, matches)]
    else:
        ranks = np.empty(len(matches), np.int64)
        for j, (match, own) in enumerate(zip(matches.tolist(), row[matches], strict=True)):
            earlier, later = row[:match] >= own, row[match + 1 :] > own
            ranks[j] = 1 + np.count_nonzero(earlier) + np.count_nonzero(later)
    ranks.sort()
    return ranks


def score_blocks(query: torch.Tensor, gallery: torch.Tensor, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first query, similarities (b, G) float32, writable, valid until the next) block by block."""
    block = -(-max(block, 1) // TILE) * TILE
    tile = query.new_zeros(TILE, query.shape[1])
    held = query.new_empty(min(block, -(-len(query) // TILE) * TILE), len(gallery))
    for start in range(0, len(query), block):
        stop = min(start + block, len(query))
        for low in range(start, stop, TILE):
            part = query[low : min(low + TILE, stop)]
            tile[: len(part)] = part
            torch.mm(tile, gallery.t(), out=held[low - start : low - start + TILE])
        yield start, held[: stop - start].cpu().numpy()
