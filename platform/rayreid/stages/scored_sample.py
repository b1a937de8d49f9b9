"""The sample of a pool whose features a scoring keeps, so that it can say what its scores mean.

The sample is scored first: the figures come after at most `SAMPLE` images, before the rest of the pool is scored, and
no image is scored twice. The same images are chosen with any number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rayreid.config import Score
from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore
from rayreid.execution.feature_extraction import extract
from rayreid.execution.production import StageContext
from rayreid.execution.shard_results import ArrayFiles, ShardResults
from rayreid.models.weights import weights_of
from rayreid.selection.meaning import ROUNDING, Diagnosis, diagnose
from rayreid.selection.similarity import nearest
from rayreid.selection.strategies import cut, random_priority
from rayreid.state_files import read_array
from rayreid.storage.roles import Role
from rayreid.training.loop import Precision

SAMPLE = 2048
"""Number of images in the sample: a rank correlation then has a standard error of 0.02, the features take 6 MiB at 384
dimensions, and plain tasks compute them without an execution of Ray Data."""

TARGET_SAMPLE = 1024
"""Number of training images of each target with which the sample is compared."""

TARGET_IMAGES = "target_images"
"""Role of a target's image store."""

_SEED = 0
_OWN_COLUMNS = 2  # rounding and brightness


def sampled_rows(store: ImageStore, rows: np.ndarray, size: int) -> np.ndarray:
    """Return at most `size` of some index rows, int64 ascending, chosen by a hash of their keys."""
    keys = np.array(store.keys_of(rows).to_pylist(), dtype=object)
    return rows[cut(keys, random_priority(keys, _SEED), min(size, len(rows)))] if len(rows) else rows


def packed(
    scores: Tensor, precision: Precision, images: ImageBatch, source: Tensor, targets: Sequence[Tensor]
) -> Tensor:
    """Return what is kept of each image of the sample, in one row, float32 (B, W).

    Args:
        scores: Scores (B, T), one per target.
        precision: Precision of the forward pass.
        images: The B images.
        source: Features of θs, of length 1, (B, D).
        targets: Features of the θt of the T targets, of length 1, (B, D) each.
    """
    rounding = torch.full((len(images), 1), ROUNDING[precision], device=scores.device)
    brightness = images.brightness().to(scores.device)[:, None]
    return torch.cat([scores, rounding, brightness, source, *targets], dim=1)


@dataclass(frozen=True)
class Sample:
    """The scored images of a sample.

    Attributes:
        rows: Index rows of the pool, int64 (n,).
        scores: Mean score over the targets, (n,).
        rounding: Error of a score that the precision causes.
        brightness: Mean brightness, (n,).
        source: Features of θs, of length 1, (n, D).
        targets: Features of each θt, of length 1, (n, D) each.
    """

    rows: np.ndarray
    scores: np.ndarray
    rounding: float
    brightness: np.ndarray
    source: np.ndarray
    targets: Sequence[np.ndarray]


class SampleFiles(ArrayFiles):
    """The rows that `packed` returns, for the images of the sample; their scores are also added to those of the pool.

    Args:
        folder: Folder for the files.
        scores: The scores of the whole pool. Those in files of an earlier process are added to it at once.
        targets: Number of targets, T.
    """

    dtype = np.float32

    def __init__(self, folder: Path, scores: ShardResults, targets: int):
        self.scores, self.targets = scores, targets
        rows = sampled_rows(scores.store, np.arange(len(scores.store)), SAMPLE)
        super().__init__(folder, scores.store, rows, scores.undecodable)
        there, values = self._finished()
        if len(there):
            scores.add(there, values[:, :targets], {})

    def add(self, rows: np.ndarray, values: np.ndarray, broken: dict[int, str]) -> None:  # type: ignore[override]
        """Add a result to the sample and to the scores."""
        super().add(rows, values, broken)
        self.scores.add(rows, values[:, : self.targets] if len(rows) else values, broken)

    def check(self, most: float) -> None:
        """Raise an error if too many images of the whole pool cannot be decoded."""
        self.scores.check(most)

    def finish(self) -> None:
        """Do nothing: if no image of the sample can be decoded, other images of the pool may still be."""

    def sample(self) -> Sample | None:
        """Return the sample, without the images that could not be decoded; None if none is left."""
        rows, values = self._finished()
        if not len(rows):
            return None
        scores, own, features = np.split(values, [self.targets, self.targets + _OWN_COLUMNS], axis=1)
        source, *targets = np.split(features, 1 + self.targets, axis=1)
        mean = scores.mean(axis=1, dtype=np.float64)
        return Sample(rows, mean, float(own[0, 0]), own[:, 1], source, targets)

    def _finished(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows (n,) and values (n, W) in the finished files."""
        there = {shard: rows for shard, rows in self.shards.items() if self.path(shard).exists()}
        found = [(rows, read_array(self.path(shard), 2, len(rows))) for shard, rows in there.items()]
        if not found:
            return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        rows, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        usable = ~np.isnan(values[:, 0])
        return rows[usable], values[usable]


def diagnosis(sample: Sample, config: Score, store: ImageStore, context: StageContext) -> Diagnosis:
    """Return the figures of a sample, compared with the images of the targets whose stores are at hand."""
    return diagnose(
        sample.scores,
        sample.rounding,
        heights=store.heights[sample.rows],
        widths=store.widths[sample.rows],
        brightness=sample.brightness,
        source=sample.source,
        targets=sample.targets,
        similarity=_similarity(sample.source, config, context),
    )


def _similarity(source: np.ndarray, config: Score, context: StageContext) -> np.ndarray | None:
    """Return the cosine of each feature of θs to the nearest training image of the targets, of which a sample is taken.

    It is None if no target has training images here.
    """
    stores = [
        ImageStore(context.input(role)) for role in context.artifact.auxiliary if Role(role).kind == TARGET_IMAGES
    ]
    found = []
    for store in stores:
        train = store.rows_of("train")
        rows = sampled_rows(store, train[store.pids[train] >= 0], TARGET_SAMPLE)
        if len(rows):
            features, _ = extract(store, rows, weights_of(context.input("source")), config.batch_size, context.screen)
            found.append(features[np.isfinite(features[:, 0])])
    if not found:
        return None
    cosines, _ = nearest(torch.from_numpy(source), torch.from_numpy(np.concatenate(found)))
    return cosines.numpy()
