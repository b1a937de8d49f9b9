"""Balanced sampling: all identities occur equally often, and so do all cameras of an identity."""

import numpy as np
import numpy.typing as npt

from rayreid.data.sampling.batch_plans import Rows, ShufflePlan
from rayreid.data.sampling.camera import UNKNOWN_CAMERA


class BalancedPlan(ShufflePlan):
    """Batches of single images in which no identity, and no camera of an identity, is rarer than another.

    Identities come in random order, each once before any is repeated; so do the cameras of an identity, and the images
    of a camera. On average this equals weights by inverse frequency (the weighted samplers of the field), but the
    images are dealt out instead of drawn. There is no P × K: an identity occurs twice in a batch only if the batch has
    more images than there are identities, or if one round of identities ends in it and the next begins.

    Args:
        rows: Index rows, integers (N,).
        pids: The identity of each row, integers (N,), none negative.
        camids: The camera of each row, integers (N,). −1 is unknown; each such image counts as a camera of its own.
        batch: Global batch size.
        seed: The run's seed.

    Attributes:
        steps_per_epoch: N // batch: an epoch has as many images as the dataset, but not every image once.
        size: The global batch size.

    Raises:
        UserError: There are fewer rows than one batch, or the batch cannot be divided among the workers.
        ValueError: The shapes of rows, pids and camids differ, or a pid is negative (unknown or junk).
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
        """Return the rows in the order of an epoch, (steps · batch,)."""
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
    """Return an identity's rows, as one array per camera."""
    unknown = camids == UNKNOWN_CAMERA
    known = [rows[~unknown][places] for places in _places(camids[~unknown])]
    return known + [rows[[place]] for place in np.flatnonzero(unknown)]


def _places(values: npt.NDArray[np.integer]) -> list[npt.NDArray[np.int64]]:
    """Return the positions of each value, in ascending order of the values."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1) if len(values) else []


def _in_turn(choices: int, draws: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return numbers below `choices`, (draws,): all of them in random order, repeatedly."""
    rounds = -(-draws // choices)
    return rng.permuted(np.tile(np.arange(choices), (rounds, 1)), axis=1).reshape(-1)[:draws]
