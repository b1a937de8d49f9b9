"""An image store that exists already, on this machine, on shared storage, or in an object store."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayreid.data.datasets.place import Place
from rayreid.data.store.manifest import INDEX, MANIFEST, ORIGIN, parsed_index, parsed_manifest
from rayreid.data.store.shard_files import place_in
from rayreid.data.store.shards import Record
from rayreid.errors import UserError, one_line
from rayreid.files import make_folder, write_atomically

_LABELS = ("key", "pid", "camid", "split")
_COPY = "copy the store again"


class ExistingStore:
    """An image store as a dataset, for example one that was ingested elsewhere and copied to a bucket.

    Its images are not read again: `adopt` copies the index, and shards are read from where they are.

    Args:
        root: The folder or URI of the store.

    Attributes:
        name: The name of the dataset that was ingested.
        version: The version of that dataset.
        manifest: The store's manifest.

    Raises:
        UserError: There is no store, or it is incomplete or has another format.
    """

    def __init__(self, root: str | None):
        if not root:
            raise UserError("dataset store needs a root: the folder or URI of an image store")
        self.root = root.rstrip("/")
        self.manifest = parsed_manifest(self._file(MANIFEST), f"{self.root}: {MANIFEST}", _COPY)
        self.name: str = self.manifest["dataset"]
        self.version: str = self.manifest["version"]
        self.ignored: list[tuple[str, str]] = []
        self.left_out: dict[str, tuple[int, str]] = {}
        self.notes: list[str] = []

    def records(self) -> Iterator[Record]:
        """List the images in the order of the index.

        Raises:
            UserError: The index cannot be read.
        """
        index = self._index(self._file(INDEX))
        for batch in index.select(_LABELS).to_batches():
            for key, pid, camid, split in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Record(key, pid, camid, split, key)

    def adopt(self, folder: Path) -> dict[str, Any]:
        """Make a store that has the index of this one and reads its shards, and return its manifest.

        Args:
            folder: The folder of the new store.

        Raises:
            UserError: A file of the store cannot be read, or the folder cannot be written.
        """
        make_folder(folder)
        index = self._file(INDEX)
        self._index(index)  # a damaged one is not taken over
        write_atomically(folder / INDEX, index)
        write_atomically(folder / "rejected.parquet", self._file("rejected.parquet"))
        manifest = {**self.manifest, ORIGIN: self.manifest.get(ORIGIN, self.root)}
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        return manifest

    def _index(self, content: bytes) -> pa.Table:
        return parsed_index(content, self.manifest, f"{self.root}: {INDEX}", _LABELS, _COPY)

    def _file(self, name: str) -> bytes:
        place: Place = place_in(self.root, name)
        try:
            return place.read(place.path)
        except FileNotFoundError:
            raise UserError(
                f"dataset store: there is no {name} in {self.root}; the store does not exist, or is not complete"
            ) from None
        except OSError as error:
            raise UserError(f"{self.root}: {name} cannot be read ({one_line(error)}); copy the store again") from error
