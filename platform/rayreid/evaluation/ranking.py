"""What is ranked, and by which similarities: never the whole distance matrix.

The rank of a true match is one plus the number of valid gallery images that beat it: by a higher similarity, or by
an equal one and an earlier place in the gallery. They are counted (`ranks_cpu`); no row is sorted.

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
NO_CAMERA = np.iinfo(np.int64).min
TILE = 256  # queries in one matrix product
DEVICE_BLOCK = 256  # queries whose similarities a GPU hands over at a time
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
    """The gallery's images of every query's identity.

    Attributes:
        rows: (G,) int64 gallery rows by identity, those of one ascending.
        spans: (Q, 2) int64, a query's identity in `rows`.
        seen: (G,) int64 camera of each of `rows`.
        cameras: (Q,) int64 camera whose images are passed over; `NO_CAMERA` where the query's is unknown.
    """

    def __init__(self, query: ImageSet, gallery: ImageSet):
        self.rows = np.argsort(gallery.pids, kind="stable")
        pids = gallery.pids[self.rows]
        self.spans = np.stack([np.searchsorted(pids, query.pids, side=side) for side in ("left", "right")], axis=1)
        self.seen = gallery.camids[self.rows].astype(np.int64)
        self.cameras = np.where(query.camids == UNKNOWN_CAMERA, NO_CAMERA, query.camids).astype(np.int64)

    def passed_over(self, i: int) -> np.ndarray:
        """Gallery rows, ascending, that are no matches of query i: its own camera has seen them."""
        low, high = self.spans[i]
        return self.rows[low:high][self.seen[low:high] == self.cameras[i]]


def _device_blocks(query: torch.Tensor, gallery: torch.Tensor, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """`score_blocks` from a GPU: the next block is multiplied and copied while the caller works on the last one."""
    starts = range(0, len(query), block)
    tile = query.new_zeros(block, query.shape[1])
    there = query.new_empty(block, len(gallery))
    here = [torch.empty(block, len(gallery), pin_memory=True) for _ in range(min(2, len(starts)))]
    copied = [torch.cuda.Event() for _ in here]

    def begin(number: int) -> None:
        part = query[starts[number] : starts[number] + block]
        tile[: len(part)] = part  # always as many rows: a product of fewer may round otherwise
        torch.mm(tile, gallery.t(), out=there)
        here[number % 2].copy_(there, non_blocking=True)
        copied[number % 2].record()

    begin(0)
    for number, start in enumerate(starts):
        if number + 1 < len(starts):
            begin(number + 1)
        copied[number % 2].synchronize()
        yield start, here[number % 2][: len(query) - start].numpy()


def score_blocks(query: torch.Tensor, gallery: torch.Tensor, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first query, similarities (b, G) float32, writable, valid until the next) block by block."""
    if query.is_cuda:
        yield from _device_blocks(query, gallery, min(block, DEVICE_BLOCK))
        return
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
