"""Pseudo labels of a target's training images: found once per epoch, equal on all workers, and saved to disk."""

import io
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rayreid.errors import UserError, one_line
from rayreid.files import make_folder, write_atomically
from rayreid.neighbours.knn import Engine, nearest
from rayreid.reid.clustering import OUTLIER, Clusters, cluster, label_quality
from rayreid.training import parallel


@dataclass(frozen=True)
class Clustering:
    """Settings of the clustering of images; see `reid.clustering.cluster` and `neighbours.knn.nearest`."""

    k1: int = 30
    k2: int = 6
    eps: float | None = 0.6
    min_samples: int = 4
    engine: Engine = "torch"

    def __call__(self, features: Tensor) -> tuple[Clusters, dict[str, float]]:
        """Return the clusters of features (N, D), the search's recall, the seconds of each part, and ε if chosen."""
        began = time.monotonic()
        neighbours = nearest(features, self.k1, self.engine)
        searched = time.monotonic()
        clusters = cluster(neighbours, self.k1, self.k2, self.eps, self.min_samples)
        ended = time.monotonic()
        seconds = {"seconds_neighbours": searched - began, "seconds_cluster": ended - searched}
        chosen = {} if self.eps is not None or clusters.eps is None else {"eps": clusters.eps}
        return clusters, {"neighbour_recall": neighbours.recall, **chosen, **seconds}


@dataclass
class PseudoLabels:
    """The labels in force. Worker 0 finds them, and all workers have the same.

    If an epoch has no usable clusters, or fewer than a batch needs, it is trained with the labels of the epoch before.
    The labels of every epoch, counted from 1, are in `folder/NNNN.npz`: `rows` (of the store's index), `labels` (−1:
    outlier) and `found_in`, the epoch in which they were found.

    Attributes:
        folder: Folder of the label files, on storage that all workers see.
        rows: Index rows of the images, int64 (N,).
        pids: True identities of the images, (N,), −1 for unknown. They are used to judge the labels, never to make
            them.
        clustering: Settings of the clustering.
        needed: Number of clusters in a batch.
        clusters: The labels in force; None before the first ones.
        found_in: The epoch in which they were found.
    """

    folder: Path
    rows: np.ndarray
    pids: np.ndarray
    clustering: Clustering
    needed: int
    clusters: Clusters | None = field(default=None, init=False)
    found_in: int = field(default=0, init=False)

    def find(self, epoch: int, features: Tensor) -> dict[str, float]:
        """Cluster the images at the beginning of an epoch, and put the labels in force.

        Args:
            epoch: The epoch, from 1.
            features: (N, D), the same on all workers.

        Returns:
            On worker 0, the statistics (`Clusters.statistics`, `label_quality`), durations, and `kept_labels`, which is
            1 if the labels of an earlier epoch stay in force. On the other workers, nothing.

        Raises:
            UserError: The first epoch has no usable clusters, or the features are broken or have collapsed.
        """
        figures: dict[str, float] = {}
        labels = torch.empty(len(self.rows), dtype=torch.int64, device=features.device)
        if parallel.rank() == 0:
            clusters, figures = self._cluster(epoch, features)
            labels.copy_(torch.from_numpy(clusters.labels))
        found = clusters_of(parallel.broadcast(labels).cpu().numpy())
        fault = self._fault(found)
        if fault:
            self._keep(epoch, fault)
        else:
            self.clusters, self.found_in = found, epoch
        if parallel.rank():
            return {}
        self._write(epoch)
        return {**found.statistics(), **label_quality(found, self.pids), **figures, "kept_labels": float(bool(fault))}

    def take_up(self, epoch: int) -> None:
        """Put the labels in force that an earlier process wrote for an epoch (from 1).

        Raises:
            UserError: The labels do not exist or belong to other images.
        """
        path = self._path(epoch)
        try:
            with np.load(path) as file:
                rows, labels, found_in = file["rows"], file["labels"], int(file["found_in"])
            if labels.shape != rows.shape or not len(labels) or labels.dtype.kind != "i" or labels.min() < OUTLIER:
                raise ValueError(f"labels of {labels.shape} {labels.dtype}")
        except Exception as error:  # for damaged bytes, NumPy's reader raises arbitrary exceptions
            raise UserError(
                f"{path}: the labels of the epoch to resume are missing or damaged ({one_line(error)}); remove "
                f"{self.folder.parent / 'checkpoints'} to start again"
            ) from None
        if not np.array_equal(rows, self.rows):
            raise UserError(f"{path}: labels of other images than the target's split train; remove it to start again")
        self.clusters, self.found_in = clusters_of(labels.astype(np.int64)), found_in

    def _cluster(self, epoch: int, features: Tensor) -> tuple[Clusters, dict[str, float]]:
        try:
            return self.clustering(features)
        except UserError as error:
            raise UserError(f"pseudo labels of epoch {epoch}: {error}") from None

    def _keep(self, epoch: int, fault: str) -> None:
        if self.clusters is None and epoch > 1:
            self.take_up(epoch - 1)
        if self.clusters is None:
            raise UserError(f"no pseudo labels to begin with: {fault}")

    def _fault(self, found: Clusters) -> str:
        """Return the reason why clusters cannot be trained on, with the remedy; empty if they can."""
        images, many = len(found.labels), len(found)
        if not many:
            return f"no cluster among {images} images; a larger adapt.eps or a smaller adapt.min_samples finds more"
        if many == 1:
            return f"one cluster alone, of {found.sizes[0]} of {images} images; a smaller adapt.eps separates them"
        if many < self.needed:
            return (
                f"{many} clusters among {images} images ({images - found.sizes.sum()} outliers), and a batch takes "
                f"adapt.clusters={self.needed}; lower that, or change adapt.eps"
            )
        return ""

    def _write(self, epoch: int) -> None:
        assert self.clusters is not None
        sink = io.BytesIO()
        labels = self.clusters.labels.astype(np.int32)
        np.savez_compressed(sink, rows=self.rows, labels=labels, found_in=np.int64(self.found_in))
        make_folder(self.folder)
        write_atomically(self._path(epoch), sink.getvalue())

    def _path(self, epoch: int) -> Path:
        return self.folder / f"{epoch:04d}.npz"


def clusters_of(labels: np.ndarray) -> Clusters:
    """Return the clusters of labels (N,) int64 from 0, −1 for outliers."""
    return Clusters(labels, np.bincount(labels[labels != OUTLIER]))
