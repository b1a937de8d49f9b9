"""Camera-aware identity sampling: the images of an identity in a batch come from as many cameras as possible."""

import numpy as np
import numpy.typing as npt

from rayreid.data.sampling.batch_plans import IdentityBatches, Rows

UNKNOWN_CAMERA = -1


class CameraPlan(IdentityBatches):
    """Batches of P identities × K images: one image and K − 1 images of the same identity from other cameras.

    This is the sampling of cluster contrast (Dai et al., arXiv 2103.11568; "random multiple gallery" in the field's
    code), which also suits supervised training. Identities come in random order, each once before any is repeated. P
    consecutive ones make a batch; a remainder of fewer than P is dropped. One image of an identity is drawn, then K − 1
    among its images from other cameras, or among its remaining images if a single camera saw it; with replacement if
    these are too few. (The field's code repeats images even if exactly K − 1 are left. It also takes the image of an
    identity with a single image only once, so that its batches shift.)

    Args:
        rows: Index rows, integers (N,).
        pids: The identity (or cluster) of each row, integers (N,), none negative.
        camids: The camera of each row, integers (N,). −1 is unknown and differs from every other camera, including −1.
        identities: P, the number of identities in a global batch.
        instances: K, the number of images per identity in a batch, at least 2.
        seed: The run's seed.
        steps_per_epoch: Number of batches in an epoch; None: as many as N images fill.

    Attributes:
        steps_per_epoch: Number of batches in every epoch.
        size: P·K.

    Raises:
        UserError: There are fewer than P identities, or P cannot be divided among the workers.
        ValueError: The shapes of rows, pids and camids differ, or a pid is negative (unknown or junk).
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
        """Return all batches of an epoch, (steps, P·K)."""
        rng = np.random.default_rng([self.seed & (2**64 - 1), epoch])
        batches: list[Rows] = []
        while len(batches) < self.steps_per_epoch:
            order = rng.permutation(len(self._members))
            whole = len(order) // self.identities * self.identities
            for identities in order[:whole].reshape(-1, self.identities)[: self.steps_per_epoch - len(batches)]:
                batches.append(np.concatenate([self._images(identity, rng) for identity in identities]))
        return np.stack(batches)

    def _images(self, identity: int, rng: np.random.Generator) -> Rows:
        """Return K rows of an identity, the first drawn from all of them."""
        members, cameras = self._members[identity], self._cameras[identity]
        anchor = rng.integers(len(members))
        others = np.arange(len(members)) != anchor
        elsewhere = others & ((cameras != cameras[anchor]) | (cameras == UNKNOWN_CAMERA))
        candidates = members[elsewhere if elsewhere.any() else others if others.any() else ~others]
        wanted = self.instances - 1
        return np.concatenate([members[[anchor]], rng.choice(candidates, wanted, replace=len(candidates) < wanted)])
