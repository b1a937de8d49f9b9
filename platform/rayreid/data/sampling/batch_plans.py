"""Batch plans: the images of each training step, as a function of (seed, epoch, step, rank) alone.

A plan deals one global batch per step, and each worker takes its contiguous share. The plan of N workers is therefore
the plan of one worker, dealt out, and after a restart any step can be drawn again without the steps before it.
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rayreid.data.augment.randomness import permutation
from rayreid.errors import UserError

Rows = npt.NDArray[np.int64]


class BatchPlan(Protocol):
    """The interface that the training loop needs from a plan."""

    steps_per_epoch: int
    size: int
    """Number of images in a global batch."""

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Rows:
        """Return the index rows for worker `rank` of `world` at a step (both counted from 0)."""
        ...


def worker_share(rows: Rows, rank: int, world: int) -> Rows:
    """Return the contiguous part of a global batch that worker `rank` of `world` takes."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is outside a world of {world}")
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]


class ShufflePlan:
    """A plan that takes every image once per epoch in a new order; the incomplete last batch is dropped.

    Args:
        rows: Index rows, integers (N,).
        batch: Global batch size.
        seed: The run's seed.

    Attributes:
        steps_per_epoch: N // batch.
        size: The global batch size.

    Raises:
        UserError: There are fewer rows than one batch, or the batch cannot be divided among the workers.
    """

    def __init__(self, rows: npt.ArrayLike, batch: int, seed: int):
        self.rows = np.asarray(rows, np.int64)
        self.size, self.seed = batch, seed
        self.steps_per_epoch = len(self.rows) // batch
        if self.steps_per_epoch == 0:
            raise UserError(f"{len(self.rows)} images are fewer than one batch of {batch}: lower the batch size")
        self._epoch: int | None = None
        self._order = self.rows

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Rows:
        """Return the rows (batch / world,) for a worker at a step."""
        if self.size % world:
            raise UserError(f"a batch of {self.size} cannot be dealt to {world} workers: make it a multiple of {world}")
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch}")
        if epoch != self._epoch:
            self._order, self._epoch = self._draw(epoch), epoch
        return worker_share(self._order[step * self.size : (step + 1) * self.size], rank, world)

    def _draw(self, epoch: int) -> Rows:
        """Return the rows in the order of an epoch."""
        return self.rows[permutation(self.seed, epoch, len(self.rows))]


class IdentityBatches(ABC):
    """The common base of plans with batches of P identities × K images; `_draw` chooses the images.

    Args:
        pids: The identity of each row, integers (N,), none negative.
        identities: P, the number of identities in a global batch.
        instances: K, the number of images per identity in a batch.
        seed: The run's seed.

    Raises:
        UserError: There are fewer than P identities.
        ValueError: A pid is negative (unknown or junk).
    """

    steps_per_epoch: int

    def __init__(self, pids: npt.NDArray[Any], identities: int, instances: int, seed: int):
        if len(pids) and pids.min() < 0:
            raise ValueError("images of unknown identity (pid < 0) cannot be drawn by identity: leave them out")
        self.identities, self.instances, self.seed = identities, instances, seed
        self.size = identities * instances
        self._order = np.argsort(pids, kind="stable")
        known, first = np.unique(pids[self._order], return_index=True)
        if len(known) < identities:
            raise UserError(
                f"{len(known)} identities are fewer than a batch's {identities}: lower the identities per batch"
            )
        self._bounds = first[1:]
        self._epoch: int | None = None
        self._batches: Rows = np.empty((0, self.size), np.int64)

    def _by_identity(self, values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Return values (N,) of the rows as one array per identity."""
        return np.split(values[self._order], self._bounds)

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Rows:
        """Return the rows (P·K / world,) for a worker at a step: whole identities, with K images in sequence each."""
        if self.identities % world:
            raise UserError(
                f"{self.identities} identities per batch cannot be dealt to {world} workers: "
                f"make them a multiple of {world}"
            )
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch}")
        if epoch != self._epoch:
            self._batches, self._epoch = self._draw(epoch), epoch
        return worker_share(self._batches[step], rank, world)

    @abstractmethod
    def _draw(self, epoch: int) -> Rows:
        """Return all batches of an epoch, (steps, P·K)."""


class IdentityPlan(IdentityBatches):
    """Batches of P identities × K images: the RandomIdentitySampler of the field (TransReID, fast-reid).

    An epoch shuffles each identity's images and cuts them into chunks of K. The incomplete chunk is dropped and its
    images are shuffled again in the next epoch; an identity with fewer than K images gives one chunk drawn with
    replacement. While at least P identities have chunks left, a batch takes one chunk from each of P of them, drawn at
    random.

    An epoch's length: identities with n images each have C = Σ max(1, n // K) chunks, so there are at most C // P
    steps. There are fewer if a few identities have most of the images, because the draw ends when fewer than P
    identities have chunks left. The length varies a little between epochs, but schedules need it in advance. Every
    epoch therefore has as many steps as the draw of epoch 0: a longer one is cut there, and a shorter one continues
    with newly dealt chunks of all identities.

    Args:
        rows: Index rows, integers (N,).
        pids: The identity of each row, integers (N,), none negative.
        identities: P, the number of identities in a global batch.
        instances: K, the number of images per identity in a batch.
        seed: The run's seed.

    Attributes:
        steps_per_epoch: Number of batches in every epoch.
        size: P·K.

    Raises:
        UserError: There are fewer than P identities, or P cannot be divided among the workers.
        ValueError: The shapes of rows and pids differ, or a pid is negative (unknown or junk).
    """

    def __init__(
        self,
        rows: npt.ArrayLike,
        pids: npt.ArrayLike,
        identities: int = 16,
        instances: int = 4,
        seed: int = 0,
    ):
        rows, pids = np.asarray(rows, np.int64), np.asarray(pids)
        if rows.shape != pids.shape:
            raise ValueError(f"{rows.shape} rows but {pids.shape} identities")
        super().__init__(pids, identities, instances, seed)
        self._members = self._by_identity(rows)
        self.steps_per_epoch = 0  # not known before the first epoch is drawn
        self._epoch, self._batches = 0, self._draw(0)
        self.steps_per_epoch = len(self._batches)

    def _draw(self, epoch: int) -> Rows:
        """Return all batches of an epoch (steps, P·K); the first epoch has as many as one deal gives."""
        rng = np.random.default_rng([self.seed & (2**64 - 1), epoch])
        batches: list[Rows] = []
        while not batches or len(batches) < self.steps_per_epoch:
            chunks = [self._deal(members, rng) for members in self._members]
            left = [len(c) for c in chunks]
            available = list(range(len(chunks)))
            while len(available) >= self.identities:
                places = rng.choice(len(available), self.identities, replace=False)
                batch = []
                for identity in (available[place] for place in places):
                    left[identity] -= 1
                    batch.append(chunks[identity][left[identity]])
                batches.append(np.concatenate(batch))
                # From the back, so that the item that fills a gap is never itself to be removed.
                for place in sorted((int(p) for p in places), reverse=True):
                    if not left[available[place]]:
                        available[place] = available[-1]
                        available.pop()
        return np.stack(batches[: self.steps_per_epoch or None])

    def _deal(self, members: Rows, rng: np.random.Generator) -> Rows:
        """Return one identity's images in random order as chunks (n, K)."""
        K = self.instances
        if len(members) < K:
            return rng.choice(members, (1, K), replace=True)
        return rng.permutation(members)[: len(members) // K * K].reshape(-1, K)
