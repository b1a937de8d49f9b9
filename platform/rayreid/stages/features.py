"""Stage *features*: images + θs → directions in θs space, for the strategies that compare images with images.

They are extracted once per store and proxy, and shared by all strategies.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rayreid.config import Auto, Score
from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.execution.production import StageContext, identity
from rayreid.execution.shard_results import ArrayFiles, fill, rows_by_shard
from rayreid.models.embedding import Embedder, Token
from rayreid.models.weights import weights_of
from rayreid.selection.cfs import directions
from rayreid.state_files import read_array, remake
from rayreid.storage.artifacts import Artifact
from rayreid.training.loop import WantedPrecision

VERSION = 1
Part = Literal["all", "train"]


def plan(images: Artifact, source: Artifact, part: Part, config: Score, token: Token = "class") -> Artifact:
    """Plan features of the images of a store.

    Args:
        images: The store.
        source: θs.
        part: "all" images, or those of the split "train"; see `rows_of`.
        config: Precision and resources of the forward pass.
        token: The feature; see `Embedder`. The class token is absent from the artifact's id.
    """
    fields = identity(part=part, precision=config.precision)
    if token != "class":
        fields["token"] = token
    inputs = {"images": images, "source": source}
    return Artifact(images.root, "features", VERSION, fields, inputs, partial(_extract, part, config, token))


def rows_of(store: ImageStore, part: Part) -> np.ndarray:
    """Return the index rows of a part, int64 ascending.

    The part "train" of a target is what a pool is compared with, which needs no labels: its labelled training images,
    or, if it has none, all its training images, or, if it has none of these either, those of an unlabelled pool.

    Raises:
        UserError: The target has none of these.
    """
    if part == "all":
        return np.arange(len(store))
    train = store.rows_of("train")
    labelled = train[store.pids[train] >= 0]
    for rows in (labelled, train, store.rows_of("pool")):
        if len(rows):
            return rows
    raise UserError(f"{store.directory}: there is no image of split 'train' or 'pool' to compare a pool with")


def read(folder: Path, store: ImageStore, part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield per shard: index rows (n,), and memory-mapped features (n, D), float16 of length 1, NaN if undecodable."""
    return read_shards(folder, rows_by_shard(store, rows_of(store, part)))


def read_shards(folder: Path, shards: Mapping[int, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield what `read` yields, without the store.

    Args:
        folder: The features.
        shards: The index rows of each shard.
    """
    for shard, rows in shards.items():
        yield rows, read_array(_path(folder, shard), 2, len(rows), remake(folder))


class _Head:
    """Directions, rounded to float16: the error of a cosine between two of them is at most 1e-4."""

    def __init__(
        self, path: Path, precision: WantedPrecision, compile: bool | Auto, token: Token, device: torch.device
    ):
        self.embed = Embedder(path, device, precision, compile, token=token)
        self.precision = self.embed.precision

    def __call__(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        return directions(self.embed(images), keys, "source").half().cpu().numpy()


class _Files(ArrayFiles):
    """Directions: 0.8 kB per image at 384 dimensions."""

    dtype = np.float16


def _path(folder: Path, shard: int) -> Path:
    return folder / "features" / f"{shard:05d}.npy"


def _extract(part: Part, config: Score, token: Token, context: StageContext) -> dict[str, Any]:
    store = ImageStore(context.input("images"))
    context.run.dataset("images", store.fingerprint, str(store.directory), {"images": len(store)}, "features")
    files = _Files(context.folder / "features", store, rows_of(store, part))
    head = partial(_Head, weights_of(context.input("source")), config.precision, config.compile, token)
    gpu_hours = fill(files, head, config, context, "features")
    return {"images": files.done, "bad": files.bad, "gpu_hours": gpu_hours}
