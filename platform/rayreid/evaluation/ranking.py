"""Query and gallery, and the similarities that rank them, without ever holding the whole distance matrix.

The rank of a true match is one plus the number of valid gallery images that beat it, by a higher similarity, or by an
equal one and an earlier place in the gallery. These are counted (`ranks_cpu`); no row is sorted.

Similarities come from products of one fixed shape, `TILE` queries (padded with zeros) by the gallery. Products of other
shapes round differently, so the order of a near tie would depend on a query's neighbours or on the block size.
"""

from collections.abc import Iterator
from copy import copy

import numpy as np
import torch

from rayreid.devices import current, tf32
from rayreid.errors import UserError

JUNK = -1  # pid of images of nobody, which are excluded from query and gallery
UNKNOWN_CAMERA = -1  # camid that equals no camera, not even itself
NO_CAMERA = np.iinfo(np.int64).min
TILE = 256  # number of queries in one matrix product
DEVICE_BLOCK = 256  # number of queries whose similarities a GPU returns at a time
SMALLEST_NORM = 1e-12  # a zero feature stays zero

Array = np.ndarray | torch.Tensor


class ImageSet:
    """Query or gallery, validated: normalised features and labels (−1 if none are given)."""

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
        """Return the same side with only its identified images."""
        if not self.junk.any():
            return self
        part = copy(self)
        keep = ~self.junk
        part.pids, part.camids, part.junk = self.pids[keep], self.camids[keep], self.junk[keep]
        part.features = self.features[torch.from_numpy(keep).to(self.features.device)]
        return part


def check_widths(query: ImageSet, gallery: ImageSet) -> None:
    """Raise a UserError if query and gallery features have different dimensions."""
    q, g = query.features.shape[1], gallery.features.shape[1]
    if q != g:
        raise UserError(f"query features have {q} dimensions, gallery features {g}: two different models made them")


class Relatives:
    """The gallery images of every query's identity.

    Attributes:
        rows: (G,) int64 gallery rows by identity, ascending within an identity.
        spans: (Q, 2) int64, the range of a query's identity in `rows`.
        seen: (G,) int64, the camera of each of `rows`.
        cameras: (Q,) int64, the camera whose images are skipped; `NO_CAMERA` if the query's is unknown.
    """

    def __init__(self, query: ImageSet, gallery: ImageSet):
        self.rows = np.argsort(gallery.pids, kind="stable")
        pids = gallery.pids[self.rows]
        self.spans = np.stack([np.searchsorted(pids, query.pids, side=side) for side in ("left", "right")], axis=1)
        self.seen = gallery.camids[self.rows].astype(np.int64)
        self.cameras = np.where(query.camids == UNKNOWN_CAMERA, NO_CAMERA, query.camids).astype(np.int64)

    def passed_over(self, i: int) -> np.ndarray:
        """Return the gallery rows, ascending, that are skipped for query i because its own camera has seen them."""
        low, high = self.spans[i]
        return self.rows[low:high][self.seen[low:high] == self.cameras[i]]


def _device_blocks(query: torch.Tensor, gallery: torch.Tensor, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the blocks of `score_blocks` from a GPU, which computes and copies the next one meanwhile."""
    starts = range(0, len(query), block)
    tile = query.new_zeros(block, query.shape[1])
    there = query.new_empty(block, len(gallery))
    here = [torch.empty(block, len(gallery), pin_memory=True) for _ in range(min(2, len(starts)))]
    copied = [torch.cuda.Event() for _ in here]

    def begin(number: int) -> None:
        part = query[starts[number] : starts[number] + block]
        tile[: len(part)] = part  # always the same number of rows, because a product of fewer may round differently
        with tf32(False):
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
        with current(query.device):
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
