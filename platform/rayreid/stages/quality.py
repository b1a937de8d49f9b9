"""Stage *quality*: pool → measures of the quality of each image, without a network and without a GPU.

They are an artifact beside the store and no columns of it: stores that were ingested before keep their ids, and another
measure ingests nothing again.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from rayreid.data.images import BadImageError
from rayreid.data.store.store import ImageStore
from rayreid.evaluation.image_sheets import image_sheet
from rayreid.execution.production import StageContext
from rayreid.execution.resources import ANYWHERE
from rayreid.execution.shard_results import ArrayFiles
from rayreid.parquet import read_columns, write_table
from rayreid.selection.image_measures import MEASURES, measures_of
from rayreid.state_files import read_array, remake
from rayreid.storage.artifacts import Artifact

VERSION = 1  # raise it also when a measure is added or defined in another way

MEASURED = "measures"
"""Folder with the measures of each finished shard, until all of them are in one table."""

_TABLE = "quality.parquet"
_IMAGES_PER_TASK = 1024  # about half a second
_BATCH = 64  # images that a task holds decoded
_AHEAD = 2  # submitted tasks per CPU
_SHEET = 24


def plan(pool: Artifact) -> Artifact:
    """Return the artifact with the measures of all images of a pool.

    Args:
        pool: The pool's image store.
    """
    return Artifact(pool.root, "quality", VERSION, {}, {"pool": pool}, _measure_all)


def read_quality(folder: Path, images: int | None = None) -> pa.Table:
    """Return the measures of a pool, N rows in the store's order.

    The columns are `key`, and a float32 column for each of `MEASURES`, NaN if an image does not have the measure; all
    are NaN if it cannot be decoded.

    Args:
        folder: The artifact's folder.
        images: Number of images in the pool; None: any.

    Raises:
        DamagedFileError: The table is missing, lacks a column, or is another pool's.
    """
    columns = {"key": pa.types.is_string, **dict.fromkeys(MEASURES, pa.types.is_floating)}
    return read_columns(folder / _TABLE, columns, images, remake(folder))


class MeasureFiles(ArrayFiles):
    """Measures of each image, in the order of `MEASURES`."""

    dtype = np.float32

    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image's measures."""
        return (len(MEASURES),)

    def usable(self, path: Path) -> np.ndarray:
        """Return which images of a file could be decoded: each of them has a height."""
        found = read_array(path, 2)
        if found.shape[1] != len(MEASURES):
            raise ValueError(f"{found.shape[1]} measures, not {len(MEASURES)}")
        return super().usable(path)

    def measures(self) -> np.ndarray:
        """Return the measures by index row, float32 (N, M); all files must be complete."""
        measures = np.full((len(self.store), len(MEASURES)), np.nan, np.float32)
        for shard, rows in self.shards.items():
            measures[rows] = read_array(self.path(shard), 2, len(rows))
        return measures


def _measure_all(context: StageContext) -> dict[str, Any]:
    store = ImageStore(context.input("pool"))
    context.run.dataset("pool", store.fingerprint, str(store.directory), {"images": len(store)}, "quality")
    files = MeasureFiles(context.folder / MEASURED, store)
    with context.screen.bar("measuring images", files.images) as bar:
        bar.to(files.done)
        for part in _measured(store.directory, list(files.missing().values())):
            files.add(*part)
            bar.to(files.done)
    measures = files.measures()
    columns = {name: pa.array(measures[:, number]) for number, name in enumerate(MEASURES)}
    keys = store.keys_of(np.arange(len(store)))
    write_table(context.folder / _TABLE, pa.table({"key": keys, **columns}))
    _draw(context, store, measures)
    known = {name: column[np.isfinite(column)] for name, column in zip(MEASURES, measures.T, strict=True)}
    medians = {name: float(np.median(values)) for name, values in known.items() if len(values)}
    return {"images": files.done, "bad": files.bad, "median": medians}


def _measured(store: Path, shards: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    """Measure images on all CPUs of the cluster, and yield the results of `measure` in no particular order.

    Args:
        store: The image store's folder, on storage that all nodes see.
        shards: Index rows, by shard.
    """
    pieces = [
        rows[start : start + _IMAGES_PER_TASK] for rows in shards for start in range(0, len(rows), _IMAGES_PER_TASK)
    ]
    task = ray.remote(num_cpus=1, scheduling_strategy=ANYWHERE)(measure)
    running: list[ray.ObjectRef[Any]] = []
    try:
        while pieces or running:
            ahead = max(1, int(ray.cluster_resources().get("CPU", 0))) * _AHEAD  # more once nodes have joined
            while pieces and len(running) < ahead:
                running.append(task.remote(store, pieces.pop(0)))
            ready, running = ray.wait(running, timeout=2)
            yield from ray.get(ready)
    finally:
        for reference in running:  # after an error: they would keep their CPUs
            ray.cancel(reference)


def measure(store: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return, on a worker, the measures of some images.

    Args:
        store: The image store's folder.
        rows: Index rows.

    Returns:
        The index rows (n,) of the images that could be decoded, their measures, float32 (n, M), and the reasons
        {row: reason} for all others.
    """
    torch.set_num_threads(1)
    images, broken = _opened(store), {}
    good: list[int] = []
    values = [np.zeros((0, len(MEASURES)), np.float32)]
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH].tolist()
        for row, image in zip(batch, images.decoded(batch), strict=True):
            if isinstance(image, BadImageError):
                broken[row] = str(image)
            else:
                good.append(row)
                values.append(measures_of(image, images.encoded(row))[None])
    return np.array(good, np.int64), np.concatenate(values), broken


@lru_cache(maxsize=1)
def _opened(store: Path) -> ImageStore:
    """Return a store, opened once by each process: reading the index of millions of images takes seconds."""
    return ImageStore(store)


def _draw(context: StageContext, store: ImageStore, measures: np.ndarray) -> None:
    """Draw, for each measure, a sheet of images from the lowest to the highest value, at even steps of their rank."""
    for name, values in zip(MEASURES, measures.T, strict=True):
        rows = np.flatnonzero(np.isfinite(values))
        if not len(rows):
            continue
        ordered = rows[np.argsort(values[rows], kind="stable")]
        shown = ordered[np.linspace(0, len(ordered) - 1, min(_SHEET, len(ordered))).round().astype(int)]
        titles = [f"{value:.4g}" for value in values[shown]]
        context.run.figure(image_sheet(store.images(shown.tolist()), titles), f"figures/{name}.png")
