"""Camera-aware identity sampling: the images of an identity in a batch come from as many cameras as they can."""

import numpy as np
import numpy.typing as npt

from rayreid.data.sampling.batch_plans import IdentityBatches, Rows

UNKNOWN_CAMERA = -1


class CameraPlan(IdentityBatches):
    """P identities × K images per batch, an image and K − 1 of the same identity that other cameras saw.

    The sampling of cluster contrast (Dai et al., arXiv 2103.11568; "random multiple gallery" in the field's code), also
    fit for supervised training. Identities follow one another in random order, each once before any comes again, and
    P at a time make a batch; a rest of fewer than P is dropped. Of an identity one image is drawn, then K − 1 among
    those of other cameras, or among its remaining ones where a single camera saw it; with replacement where these are
    too few. (The field's code repeats images already where exactly K − 1 are left, and takes the one image of an
    identity that has no other just once, so that its batches shift.)

    Args:
        rows: index rows, integers (N,).
        pids: the identity (or cluster) of each row, integers (N,), none negative.
        camids: the camera of each row, integers (N,); −1 is unknown and differs from every other, itself included.
        identities: P, identities in a global batch.
        instances: K, images per identity in a batch, at least 2.
        seed: the run's seed.
        steps_per_epoch: batches in an epoch; None: as many as N images fill.

    Attributes:
        steps_per_epoch: number of batches in every epoch.
        size: P·K.

    Raises:
        UserError: there are fewer than P identities, or the workers do not divide P.
        ValueError: rows, pids and camids do not belong together, or a pid is negative (unknown or junk).
    """

    def __init__(
        self,
        rows: npt.ArrayLike,
        pids: npt.ArrayLike,
        camids: npt.ArrayLike,
        identities: int = 16,
        instances: int = 4,
        seed: int = 0,
        steps_per_epoch: int | None = None,
    ):
        rows, pids, camids = np.asarray(rows, np.int64), np.asarray(pids), np.asarray(camids)
        if not rows.shape == pids.shape == camids.shape:
            raise ValueError(f"{rows.shape} rows but {pids.shape} identities and {camids.shape} cameras")
        super().__init__(pids, identities, instances, seed)
        self._members, self._cameras = self._by_identity(rows), self._by_identity(camids)
        self.steps_per_epoch = steps_per_epoch or max(1, len(rows) // self.size)

    def _draw(self, epoch: int) -> Rows:
        """All batches of an epoch, (steps, P·K)."""
        rng = np.random.default_rng([self.seed & (2**64 - 1), epoch])
        batches: list[Rows] = []
        while len(batches) < self.steps_per_epoch:
            order = rng.permutation(len(self._members))
            whole = len(order) // self.identities * self.identities
            for identities in order[:whole].reshape(-1, self.identities)[: self.steps_per_epoch - len(batches)]:
                batches.append(np.concatenate([self._images(identity, rng) for identity in identities]))
        return np.stack(batches)

    def _images(self, identity: int, rng: np.random.Generator) -> Rows:
        """K rows of an identity, the first drawn from all of them."""
        members, cameras = self._members[identity], self._cameras[identity]
        anchor = rng.integers(len(members))
        others = np.arange(len(members)) != anchor
        elsewhere = others & ((cameras != cameras[anchor]) | (cameras == UNKNOWN_CAMERA))
        candidates = members[elsewhere if elsewhere.any() else others if others.any() else ~others]
        wanted = self.instances - 1
        return np.concatenate([members[[anchor]], rng.choice(candidates, wanted, replace=len(candidates) < wanted)])
