"""Stage *features*: images + θs → directions in θs space, for the strategies that compare images with images.

They are extracted once per store and proxy, and shared by all strategies.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rayreid.config import Auto, Score
from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore
from rayreid.execution.production import StageContext, identity
from rayreid.execution.shard_results import ArrayFiles, fill, rows_by_shard
from rayreid.models.embedding import Embedder
from rayreid.models.weights import weights_of
from rayreid.selection.cfs import directions
from rayreid.stages.finetune import labelled_rows
from rayreid.state_files import read_array, remake
from rayreid.storage.artifacts import Artifact
from rayreid.training.loop import WantedPrecision

VERSION = 1
Part = Literal["all", "train"]


def plan(images: Artifact, source: Artifact, part: Part, config: Score) -> Artifact:
    """Return the artifact with features of all images of a store, or of the labelled images of its split `train`."""
    fields = identity(part=part, precision=config.precision)
    inputs = {"images": images, "source": source}
    return Artifact(images.root, "features", VERSION, fields, inputs, partial(_extract, part, config))


def rows_of(store: ImageStore, part: Part) -> np.ndarray:
    """Return the index rows of a part, int64 ascending."""
    return np.arange(len(store)) if part == "all" else labelled_rows(store)


def read(folder: Path, store: ImageStore, part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield per shard: index rows (n,), and memory-mapped features (n, D), float16 of length 1, NaN if undecodable."""
    for shard, rows in rows_by_shard(store, rows_of(store, part)).items():
        yield rows, read_array(_path(folder, shard), 2, len(rows), remake(folder))


class _Head:
    """Directions, rounded to float16: the error of a cosine between two of them is at most 1e-4."""

    def __init__(self, path: Path, precision: WantedPrecision, compile: bool | Auto, device: torch.device):
        self.embed = Embedder(path, device, precision, compile)

    def __call__(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        return directions(self.embed(images), keys, "source").half().cpu().numpy()


class _Files(ArrayFiles):
    """Directions: 0.8 kB per image at 384 dimensions."""

    dtype = np.float16


def _path(folder: Path, shard: int) -> Path:
    return folder / "features" / f"{shard:05d}.npy"


def _extract(part: Part, config: Score, context: StageContext) -> dict[str, Any]:
    store = ImageStore(context.input("images"))
    context.run.dataset("images", store.fingerprint, str(store.directory), {"images": len(store)}, "features")
    files = _Files(context.folder / "features", store, rows_of(store, part))
    head = partial(_Head, weights_of(context.input("source")), config.precision, config.compile)
    gpu_hours = fill(files, head, config, context, "features")
    return {"images": files.done, "bad": files.bad, "gpu_hours": gpu_hours}
