"""An image store that exists already, on this machine, on shared storage, or in an object store."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayreid import forms
from rayreid.data.datasets.place import Place
from rayreid.data.store.index import FORMAT
from rayreid.data.store.manifest import FORM as MANIFEST_FORM
from rayreid.data.store.shard_files import ORIGIN, place_in
from rayreid.data.store.shards import INDEX_SCHEMA, Record
from rayreid.errors import UserError, one_line
from rayreid.files import make_folder, write_atomically
from rayreid.parquet import columns_of


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
        self.manifest = self._manifest()
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
        kinds = {name: INDEX_SCHEMA.field(name).type.equals for name in ("key", "pid", "camid", "split")}
        try:
            index = columns_of(pa.BufferReader(self._file("index.parquet")), kinds)
        except (ValueError, OSError) as error:  # among them Arrow's
            reason = one_line(error)
            raise UserError(f"{self.root}: index.parquet cannot be read ({reason}); copy the store again") from error
        for batch in index.to_batches():
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
        for name in ("index.parquet", "rejected.parquet"):
            write_atomically(folder / name, self._file(name))
        manifest = {**self.manifest, ORIGIN: self.manifest.get(ORIGIN, self.root)}
        write_atomically(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        return manifest

    def _manifest(self) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = forms.parse(self._file("manifest.json"), MANIFEST_FORM)
        except ValueError as error:
            reason = one_line(error)
            raise UserError(
                f"{self.root}: manifest.json is no image store's manifest ({reason}); copy the store again"
            ) from error
        version = manifest["format"]
        if version not in range(1, FORMAT + 1):
            raise UserError(f"{self.root}: store format {version}, this rayreid reads up to {FORMAT}; ingest again")
        return manifest

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
