"""Balanced sampling: every identity as often as any other, and of each its cameras as often as one another."""

import numpy as np
import numpy.typing as npt

from rayreid.data.sampling.batch_plans import Rows, ShufflePlan
from rayreid.data.sampling.camera import UNKNOWN_CAMERA


class BalancedPlan(ShufflePlan):
    """Batches of single images in which no identity, and no camera of an identity, is rarer than another.

    Identities follow one another in random order, each once before any comes again; so do the cameras of an identity,
    and the images of a camera. It is what weights by inverse frequency give on average (the field's weighted samplers),
    dealt out instead of drawn. There is no P × K: an identity comes in a batch twice only where there are fewer
    identities than images in it, or where one round of them ends and the next begins.

    Args:
        rows: index rows, integers (N,).
        pids: the identity of each row, integers (N,), none negative.
        camids: the camera of each row, integers (N,); −1 is unknown, and each such image counts as a camera of its own.
        batch: global batch size.
        seed: the run's seed.

    Attributes:
        steps_per_epoch: N // batch: as many images as there are, but not every one of them once.
        size: the batch.

    Raises:
        UserError: there are fewer rows than one batch, or the workers do not divide the batch.
        ValueError: rows, pids and camids do not belong together, or a pid is negative (unknown or junk).
    """

    def __init__(self, rows: npt.ArrayLike, pids: npt.ArrayLike, camids: npt.ArrayLike, batch: int, seed: int):
        super().__init__(rows, batch, seed)
        pids, camids = np.asarray(pids), np.asarray(camids)
        if not self.rows.shape == pids.shape == camids.shape:
            raise ValueError(f"{self.rows.shape} rows but {pids.shape} identities and {camids.shape} cameras")
        if pids.min() < 0:
            raise ValueError("images of unknown identity (pid < 0) cannot be drawn by identity: leave them out")
        self._groups = [_by_camera(self.rows[places], camids[places]) for places in _places(pids)]

    def _draw(self, epoch: int) -> Rows:
        """The rows in the order of an epoch, (steps · batch,)."""
        rng = np.random.default_rng([self.seed & (2**64 - 1), epoch])
        identities = _in_turn(len(self._groups), self.steps_per_epoch * self.size, rng)
        order = np.empty(len(identities), np.int64)
        for places in _places(identities):
            cameras = self._groups[identities[places[0]]]
            seen_by = _in_turn(len(cameras), len(places), rng)
            for mine in _places(seen_by):
                rows = cameras[seen_by[mine[0]]]
                order[places[mine]] = rows[_in_turn(len(rows), len(mine), rng)]
        return order


def _by_camera(rows: Rows, camids: npt.NDArray[np.integer]) -> list[Rows]:
    """An identity's rows, an array per camera."""
    unknown = camids == UNKNOWN_CAMERA
    known = [rows[~unknown][places] for places in _places(camids[~unknown])]
    return known + [rows[[place]] for place in np.flatnonzero(unknown)]


def _places(values: npt.NDArray[np.integer]) -> list[npt.NDArray[np.int64]]:
    """Where each value occurs, in ascending order of the values."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1) if len(values) else []


def _in_turn(choices: int, draws: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Numbers below `choices`, (draws,): all of them in random order, again and again."""
    rounds = -(-draws // choices)
    return rng.permuted(np.tile(np.arange(choices), (rounds, 1)), axis=1).reshape(-1)[:draws]
