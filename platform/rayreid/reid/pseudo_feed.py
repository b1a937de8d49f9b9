"""The input of cluster contrast: in every epoch, the images of the clusters that were found at its beginning."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rayreid.data.augment.upload import upload
from rayreid.data.batch import ImageBatch
from rayreid.data.sampling.batch_plans import Rows
from rayreid.data.sampling.camera import CameraPlan
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.reid.cluster_contrast import ClusterContrast
from rayreid.reid.clustering import OUTLIER, cluster_means
from rayreid.reid.pseudo_labels import PseudoLabels
from rayreid.training import parallel
from rayreid.training.feed import Prefetcher
from rayreid.training.loop import Batch


class PseudoLabelPlan:
    """Camera-aware sampling (`CameraPlan`) whose identities are the clusters of the current epoch.

    Args:
        rows: Index rows, integers (N,).
        camids: The camera of each row, (N,), −1 for unknown.
        clusters: P, the number of clusters in a global batch.
        instances: K, the number of images per cluster.
        steps_per_epoch: Number of batches in an epoch.
        seed: The run's seed.

    Attributes:
        steps_per_epoch: Number of batches in an epoch.
        size: P·K.
    """

    def __init__(
        self, rows: npt.ArrayLike, camids: npt.ArrayLike, clusters: int, instances: int, steps_per_epoch: int, seed: int
    ):
        self.rows, self.camids = np.asarray(rows, np.int64), np.asarray(camids)
        self.clusters, self.instances, self.seed = clusters, instances, seed
        self.steps_per_epoch, self.size = steps_per_epoch, clusters * instances
        self._epoch: int | None = None
        self._plan: CameraPlan | None = None

    def begin(self, epoch: int, labels: np.ndarray) -> None:
        """Set the labels (N,) of an epoch; outliers (−1) are left out.

        Raises:
            UserError: There are fewer clusters than a batch needs.
        """
        kept = labels != OUTLIER
        self._epoch = epoch
        self._plan = CameraPlan(
            self.rows[kept],
            labels[kept],
            self.camids[kept],
            self.clusters,
            self.instances,
            self.seed,
            self.steps_per_epoch,
        )

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Rows:
        """Return the rows (P·K / world,) for a worker at a step of the epoch that was begun."""
        if self._plan is None or epoch != self._epoch:
            raise ValueError(f"epoch {epoch} has no labels yet")
        return self._plan.batch(epoch, step, rank, world)


@dataclass(frozen=True)
class PseudoLabelFeed:
    """The feed of the loop, epoch by epoch; before each epoch, features are extracted and clustered.

    An epoch that is resumed in the middle takes its labels from the disk and its memory from the checkpoint. An epoch
    that begins is clustered, also if the run was resumed there: the clusters are a function of the parameters, so they
    are the same as without the interruption.

    Attributes:
        method: The method whose features are clustered and whose memory is set.
        store: The images.
        plan: The images of each step.
        labels: The pseudo labels.
        prepare: Function (decoded images on the device, keys, epoch, store rows) → images (B, 3, H, W).
        extract: Function from a backbone to its features of all images of the plan, (N, D), on all workers.
        device: Device of the method.
        log: Receives a row for every epoch, on worker 0.
        threads: Number of decoding threads.
    """

    method: ClusterContrast
    store: ImageStore
    plan: PseudoLabelPlan
    labels: PseudoLabels
    prepare: Callable[[ImageBatch, Sequence[str], int, np.ndarray], Tensor]
    extract: Callable[[nn.Module], Tensor]
    device: torch.device
    log: Callable[[dict[str, float]], None] = lambda row: None
    threads: int = 2

    def __call__(self, start: int) -> Iterator[Batch]:
        """Yield micro-batches (images, clusters) from optimizer step `start` on, without end.

        Nothing is read ahead beyond the end of an epoch. The wait of an epoch's first batch includes the wait for its
        labels.

        Raises:
            UserError: See `PseudoLabels`.
        """
        while True:
            epoch, within = divmod(start, self.plan.steps_per_epoch)
            began = time.monotonic()
            if within:
                self._go_on(epoch)
            else:
                self._begin(epoch)
            waited = time.monotonic() - began
            end = (epoch + 1) * self.plan.steps_per_epoch
            with closing(self._feed()(start, end)) as batches:
                first = next(batches)
                yield replace(first, wait=first.wait + waited)
                yield from batches
            start = end

    def _begin(self, epoch: int) -> None:
        began = time.monotonic()
        before_neck = self.extract(self.method.base)
        if not epoch:
            self.method.settle(before_neck)
        features = self.method.after_neck(before_neck)
        seconds = time.monotonic() - began
        figures = self.labels.find(epoch + 1, features)
        assert self.labels.clusters is not None
        self.method.remember(cluster_means(features, self.labels.clusters))
        self.plan.begin(epoch, self.labels.clusters.labels)
        if parallel.rank() == 0:
            step = epoch * self.plan.steps_per_epoch
            self.log({"step": step, "epoch": float(epoch), **figures, "seconds_extract": seconds})

    def _go_on(self, epoch: int) -> None:
        self.labels.take_up(epoch + 1)
        assert self.labels.clusters is not None
        held = 0 if self.method.memory is None else len(self.method.memory.features)
        if held != len(self.labels.clusters):
            raise UserError(
                f"{self.labels.folder}: the labels of epoch {epoch + 1} are of {len(self.labels.clusters)} clusters, "
                f"the checkpoint's memory of {held}; remove the newest checkpoint to restart that epoch"
            )
        self.plan.begin(epoch, self.labels.clusters.labels)

    def _feed(self) -> Prefetcher:
        """Return the feed of the epoch's batches: the images with their clusters."""
        assert self.labels.clusters is not None
        target = np.full(len(self.store), OUTLIER)
        target[self.plan.rows] = self.labels.clusters.labels

        def prepare(images: ImageBatch, keys: Sequence[str], epoch: int, rows: np.ndarray) -> tuple[Tensor, Tensor]:
            return self.prepare(images, keys, epoch, rows), upload([target[rows]], self.device)[0]

        return Prefetcher(self.store, self.plan, prepare, self.device, threads=self.threads)
