"""The input of the loop: threads read and decode encoded images ahead of the step that needs them."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

from rayreid.data.ahead import in_order
from rayreid.data.batch import ImageBatch
from rayreid.data.sampling.batch_plans import BatchPlan
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.training import parallel
from rayreid.training.loop import Batch
from rayreid.training.staging import lane_for, one_ahead


@dataclass(frozen=True)
class _Piece:
    """A micro-batch as the decoding threads return it, and the seconds for which the loop waited for it."""

    epoch: int
    rows: np.ndarray
    data: Any
    wait: float


@dataclass(frozen=True)
class Prefetcher:
    """Micro-batches of a store, in the order of a plan.

    Attributes:
        store: The images.
        plan: The images of each *optimizer step*, over all workers.
        prepare: Function (decoded images on the device, keys, epoch, store rows) → input of the method. It runs on the
            training device; if that is the CPU, it runs on the decoding threads, in parallel with the step before.
        device: Device of `prepare`.
        accumulate: Number of micro-batches into which a worker's share of a step is divided.
        threads: Number of decoding threads; JPEG decoding releases the interpreter lock.
        ahead: Number of micro-batches in flight; by default enough to keep every thread busy, and at least 4.
    """

    store: ImageStore
    plan: BatchPlan
    prepare: Callable[[ImageBatch, Sequence[str], int, np.ndarray], Any]
    device: torch.device
    accumulate: int = 1
    threads: int = 2
    ahead: int | None = None

    def __call__(self, start: int, end: int | None = None) -> Generator[Batch, None, None]:
        """Yield micro-batches from optimizer step `start` on, up to but excluding step `end`; None: without end.

        Nothing beyond `end` is read ahead or requested from the plan.

        Raises:
            UserError: The micro-batches would differ in size, or an image cannot be read.
        """
        with closing(self._loaded(start, end)) as pieces:
            for piece, data in self._prepared(pieces):
                yield Batch(self._keys(piece.rows), data, piece.wait)

    def _prepared(self, pieces: Iterator["_Piece"]) -> Iterator[tuple["_Piece", Any]]:
        if self.device.type == "cpu":  # the decoding threads have already prepared it
            return ((piece, piece.data) for piece in pieces)
        return one_ahead(pieces, self._upload, lane_for(self.device))

    def _loaded(self, start: int, end: int | None) -> Generator["_Piece", None, None]:
        """Yield the results of the decoding threads, in the plan's order."""
        ahead = self.ahead or max(4, self.threads)
        # One torch thread each: they run in parallel with one another and with the step.
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for (epoch, rows), loaded in in_order(pool, self._load, self._work(start, end), ahead):
                began = time.monotonic()
                data = loaded.result()
                yield _Piece(epoch, rows, data, time.monotonic() - began)

    def _work(self, start: int, end: int | None) -> Iterator[tuple[int, np.ndarray]]:
        for step in count(start) if end is None else range(start, end):
            epoch, within = divmod(step, self.plan.steps_per_epoch)
            rows = self.plan.batch(epoch, within, parallel.rank(), parallel.world_size())
            if len(rows) % self.accumulate:
                raise UserError(f"accumulate={self.accumulate} does not divide a worker's {len(rows)} images per step")
            for part in np.array_split(rows, self.accumulate):
                yield epoch, part

    def _load(self, share: tuple[int, np.ndarray]) -> Any:
        """Return decoded images in memory from which the device can copy them, already prepared for the CPU."""
        epoch, rows = share
        decoded = self.store.images(rows.tolist())
        images = ImageBatch.collate(decoded, pinned=self.device.type == "cuda")
        return self.prepare(images, self._keys(rows), epoch, rows) if self.device.type == "cpu" else images

    def _upload(self, piece: "_Piece") -> Any:
        images = piece.data.to(self.device, non_blocking=True)
        return self.prepare(images, self._keys(piece.rows), piece.epoch, piece.rows)

    def _keys(self, rows: np.ndarray) -> list[str]:
        return [str(self.store.keys[int(row)]) for row in rows]
