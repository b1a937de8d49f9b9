"""Results per image of a pool, in one file per shard, which is written when the shard is complete; restarts use it."""

import io
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rayreid.config import Score
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.execution.actor_pool import stream
from rayreid.execution.production import StageContext
from rayreid.execution.resources import scoring_actors
from rayreid.files import append_lines, write_atomically
from rayreid.models.embedding import BatchFunction
from rayreid.state_files import if_whole, read_array, read_text, reading

UNDECODABLE = "undecodable.tsv"
"""File that lists the images that could not be decoded, with the reason."""


class Undecodable:
    """The list of images that cannot be decoded, each once: those of an unfinished shard are found again by a restart.

    Args:
        path: The file: a line `key<TAB>reason` per image. What an interrupted process left in it is kept.
    """

    def __init__(self, path: Path):
        self.path = path
        self._listed = _listed(path)

    def add(self, broken: Mapping[str, str]) -> None:
        """List images by key, with the reason, unless they are listed."""
        new = {key: reason for key, reason in broken.items() if key not in self._listed}
        if new:
            # Synced before the files of their shards, from which no restart would list these images again.
            append_lines(self.path, "".join(f"{key}\t{reason}\n" for key, reason in new.items()).encode())
            self._listed.update(new)


class ShardResults(ABC):
    """Files of float values per image, one per shard, with NaN for images that could not be decoded.

    Rows that arrive again, as they may when a worker is lost, change nothing.

    Args:
        folder: Folder for the files; it is created if it does not exist.
        store: The images.
        rows: Index rows of the requested images; all by default.
        undecodable: The list of images that cannot be decoded, if it is shared with other results; by default the
            file `undecodable.tsv` beside the folder.

    Attributes:
        images: Number of requested images.
        bad: Number of images that are known to be undecodable, including those in an earlier process's files.
        done: Number of processed images, including those in an earlier process's files.
    """

    suffix: str
    dtype: type[np.floating]

    def __init__(
        self,
        folder: Path,
        store: ImageStore,
        rows: np.ndarray | None = None,
        undecodable: Undecodable | None = None,
    ):
        self.folder, self.store = folder, store
        folder.mkdir(exist_ok=True)
        self.shards = rows_by_shard(store, rows)
        self.images = sum(map(len, self.shards.values()))
        self._values: dict[int, np.ndarray] = {}
        self._left: dict[int, np.ndarray] = {}
        usable = [good for shard in self.shards if (good := self._finished_before(shard)) is not None]
        self.bad = sum(int((~good).sum()) for good in usable)
        self.done = sum(map(len, usable))
        self.undecodable = Undecodable(folder.parent / UNDECODABLE) if undecodable is None else undecodable
        self._shape = self.shape()

    @abstractmethod
    def shape(self) -> tuple[int, ...] | None:
        """Return the shape of one image's values; None if only the first values reveal it."""

    @abstractmethod
    def encode(self, rows: np.ndarray, values: np.ndarray) -> bytes:
        """Return the content of a shard's file.

        Args:
            rows: Index rows (n,).
            values: Their values (n, …); all of them are NaN if no image could be decoded.
        """

    @abstractmethod
    def usable(self, path: Path) -> np.ndarray:
        """Return which images of a finished file could be decoded, bool (n,)."""

    def path(self, shard: int) -> Path:
        """Return the path of a shard's file."""
        return self.folder / f"{shard:05d}{self.suffix}"

    def missing(self) -> dict[int, np.ndarray]:
        """Return the index rows without a result of the shards that have no file yet, by shard."""
        missing = {shard: rows for shard, rows in self.shards.items() if not self.path(shard).exists()}
        return {shard: rows[self._left[shard]] if shard in self._left else rows for shard, rows in missing.items()}

    def add(self, rows: np.ndarray, values: np.ndarray, broken: Mapping[int, str]) -> None:
        """Add a result, and write the files of the shards that it completes.

        Args:
            rows: Index rows (n,).
            values: Their values (n, …).
            broken: Reasons {row: reason} for the images that could not be decoded.
        """
        bad = np.fromiter(broken, np.int64)
        if broken:
            keys = self.store.keys_of(bad).to_pylist()
            self.undecodable.add(dict(zip(keys, broken.values(), strict=True)))
        if len(rows):  # without rows, the shape of `values` says nothing
            self._shape = values.shape[1:]
        shards, bad_shards = self.store.shards[rows], self.store.shards[bad]
        for shard in np.union1d(shards, bad_shards):
            self._fill(int(shard), rows[shards == shard], values[shards == shard], bad[bad_shards == shard])
        self._write_whole()

    def check(self, most: float) -> None:
        """Raise an error if too many images cannot be decoded.

        Raises:
            UserError: More than the fraction `most` of the images cannot be decoded.
        """
        if self.bad > most * self.images:
            raise UserError(
                f"{self.store.directory}: {self.bad} of {self.images} images cannot be decoded, more than "
                f"score.max_bad_fraction={most}; see {self.undecodable.path}"
            )

    def finish(self) -> None:
        """Check, after the last result, that every shard has its file.

        Raises:
            UserError: None of the images could be decoded, so no file could be written.
        """
        if self._left:
            raise UserError(f"{self.store.directory}: no image could be decoded; see {self.undecodable.path}")

    def _finished_before(self, shard: int) -> np.ndarray | None:
        """Return which images of a shard an earlier process could decode; None if it has not finished the shard."""
        path, images = self.path(shard), len(self.shards[shard])

        def read() -> np.ndarray:
            with reading(path):
                good = self.usable(path)
                if len(good) != images:
                    raise ValueError(f"{len(good)} images, not {images}")
                return good

        return if_whole(path, read, "its images are computed again")

    def _fill(self, shard: int, rows: np.ndarray, values: np.ndarray, bad: np.ndarray) -> None:
        if self.path(shard).exists():
            return
        every = self.shards[shard]
        left = self._left.setdefault(shard, np.ones(len(every), bool))
        good_places, bad_places = np.searchsorted(every, rows), np.searchsorted(every, bad)
        if len(rows):
            if shard not in self._values:
                self._values[shard] = self._nothing(shard)
            self._values[shard][good_places] = values
        self.bad += int(left[bad_places].sum())
        self.done += int(left[good_places].sum() + left[bad_places].sum())
        left[good_places] = left[bad_places] = False

    def _write_whole(self) -> None:
        """Write the files of the shards that are complete."""
        if self._shape is None:
            return
        for shard in [shard for shard, left in self._left.items() if not left.any()]:
            del self._left[shard]
            values = self._values.pop(shard, None)
            values = self._nothing(shard) if values is None else values
            write_atomically(self.path(shard), self.encode(self.shards[shard], values))

    def _nothing(self, shard: int) -> np.ndarray:
        assert self._shape is not None
        return np.full((len(self.shards[shard]), *self._shape), np.nan, self.dtype)


class ArrayFiles(ShardResults):
    """Memory-mapped NumPy files of one vector per image, in the order of the index.

    The length of a vector becomes known with the first result, unless an earlier process left a file.
    """

    suffix = ".npy"

    def shape(self) -> tuple[int, ...] | None:
        """Return the shape that files of an earlier process have; None if there are none."""
        there = next((path for path in map(self.path, self.shards) if path.exists()), None)
        return read_array(there, 2).shape[1:] if there else None

    def encode(self, rows: np.ndarray, values: np.ndarray) -> bytes:
        """Encode the vectors, (n, …)."""
        sink = io.BytesIO()
        np.save(sink, values)
        return sink.getvalue()

    def usable(self, path: Path) -> np.ndarray:
        """Return which images of a file have a vector."""
        return ~np.isnan(read_array(path, 2)[:, 0])


def fill(
    results: ShardResults,
    build: Callable[[torch.device], BatchFunction],
    config: Score,
    context: StageContext,
    title: str,
) -> float:
    """Compute the missing results on all GPUs or CPUs of the cluster, and return the GPU-hours.

    Args:
        results: The results to complete.
        build: Function (device) → head; it is pickled and sent to the actors.
        config: The batch size and the permitted fraction of undecodable images.
        context: The stage's context, for progress.
        title: Title of the progress bar.

    Raises:
        UserError: More than `config.max_bad_fraction` of the images cannot be decoded, or the head raises it.
    """
    store = results.store
    with context.screen.bar(title, results.images) as bar:
        bar.to(results.done)
        results.check(config.max_bad_fraction)
        share, began = scoring_actors(), time.monotonic()
        for part in stream(store.directory, list(results.missing().values()), build, config.batch_size):
            results.add(*part)
            results.check(config.max_bad_fraction)
            bar.to(results.done)
        results.finish()
        gpus = share.workers if share.gpu else 0
        return gpus * (time.monotonic() - began) / 3600


def rows_by_shard(store: ImageStore, rows: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """Return the index rows of each shard, int64 ascending; only those among `rows`, if given."""
    rows = np.arange(len(store)) if rows is None else np.sort(rows)
    order = rows[np.argsort(store.shards[rows], kind="stable")]
    shards, starts = np.unique(store.shards[order], return_index=True)
    return dict(zip(shards.tolist(), np.split(order, starts[1:]), strict=True))


def _listed(path: Path) -> set[str]:
    """Return the keys in an interrupted process's list of images, and remove an unfinished last line from the file."""
    content = if_whole(path, partial(read_text, path), "images of finished shards are no longer listed")
    if content is None:
        return set()
    whole, end, torn = content.rpartition("\n")
    if torn:
        write_atomically(path, whole + end)
    return {line.partition("\t")[0] for line in whole.split("\n")}
