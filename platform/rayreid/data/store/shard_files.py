"""The shard files of a store: where they are, and reading them through a memory map."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from rayreid.data.datasets.place import Place, is_uri
from rayreid.data.store.manifest import ORIGIN
from rayreid.data.store.shard_cache import CacheUnusableError, Copy, ShardCache, refuse_too_many_open, warn_once
from rayreid.errors import UserError, one_line
from rayreid.files import digest_of
from rayreid.paths import cache_folder

_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError)
"""What Arrow and NumPy raise for a damaged file: its schema may say anything."""


class MappedShard:
    """A memory-mapped shard with the start and end of each image's bytes in the file.

    Arrow builds several Python objects for each value that it returns. Two integers per image and one memoryview of the
    whole file make random access some twenty times cheaper.

    Args:
        path: The Arrow file.
        copy: The file as a copy in a cache, which the map keeps on the disk.

    Attributes:
        path: The Arrow file.

    Raises:
        UserError: The file is missing or damaged.
    """

    def __init__(self, path: Path, copy: Copy | None = None):
        try:
            whole = pa.memory_map(str(path)).read_buffer() if copy is None else pa.py_buffer(copy.map())
            self.file = pa.ipc.open_file(whole)
            self.starts, self.ends = _bounds(self.file, whole)
        except FileNotFoundError as error:
            raise UserError(f"{path}: the shard is missing; copy it again or run the ingest again") from error
        except _DAMAGE as error:
            refuse_too_many_open(error, path)
            raise UserError(
                f"{path}: the shard cannot be read ({one_line(error)}); restore it from a copy, or delete it and run "
                "again"
            ) from error
        self.path = path
        self.view = memoryview(whole)


def _bounds(file: pa.ipc.RecordBatchFileReader, whole: pa.Buffer) -> tuple[np.ndarray, np.ndarray]:
    """Return where the bytes of each image start and end in the file, int64 (N,) each."""
    starts, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number in range(file.num_record_batches):
        images = file.get_batch(number).column("image")
        _, positions, data = images.buffers()
        bounds = np.frombuffer(positions, dtype=np.int32, count=len(images) + 1).astype(np.int64)
        bounds += data.address - whole.address
        starts.append(bounds[:-1])
        ends.append(bounds[1:])
    return np.concatenate(starts), np.concatenate(ends)


class ShardFile:
    """One shard where it was written: on this machine, on storage that all nodes see, or in an object store.

    Args:
        store: The folder or URI of the store.
        entry: The shard's entry in the manifest: `file`, `rows`, `checksum`.
    """

    def __init__(self, store: str, entry: Mapping[str, Any]):
        self.checksum: str = entry["checksum"]
        self._place = place_in(store, entry["file"])

    def __str__(self) -> str:
        return str(self._place)

    @property
    def path(self) -> Path | None:
        """Return its path; None if it is in an object store."""
        return Path(self._place.path) if self._place.is_local else None

    def size(self) -> int | None:
        """Return the number of its bytes; None if it is missing.

        Raises:
            OSError: It cannot be reached.
        """
        return self._place.filesystem.get_file_info(self._place.path).size

    def open(self) -> IO[bytes]:
        """Open it for reading from start to end.

        Raises:
            OSError: It is missing or cannot be read.
        """
        return self._place.filesystem.open_input_stream(self._place.path)

    def verify(self) -> None:
        """Read it and compare its checksum with the manifest.

        Raises:
            UserError: It is missing, or its bytes changed.
        """
        try:
            with self.open() as stream:
                found = digest_of(stream)
        except FileNotFoundError:
            raise UserError(f"{self}: the shard is missing; copy it again or run the ingest again") from None
        except (OSError, pa.ArrowException) as error:
            refuse_too_many_open(error, self)
            raise UserError(f"{self}: the shard cannot be read ({one_line(error)})") from error
        if found != self.checksum:
            raise UserError(f"{self}: its bytes changed since the ingest; copy it again or ingest again")


class ShardFiles:
    """All shards of a store, by number.

    With `RAYREID_CACHE`, shards are read from copies on a disk of this node; see `rayreid.data.store.shard_cache`.
    Shards of an object store are always read so, by default below the folder for temporary files.

    Args:
        directory: The store's folder.
        manifest: Its manifest.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]):
        self._own = directory
        self._store: str = manifest.get(ORIGIN, str(directory))
        self._entries: list[Mapping[str, Any]] = manifest["shards"]

    @property
    def origin(self) -> str:
        """Return the path or URI of the store that holds them."""
        return self._store

    def __len__(self) -> int:
        return len(self._entries)

    def remedy(self, path: Path) -> str:
        """Return what to do about a damaged shard, which was read from a path."""
        if path != self._own.joinpath("shards", path.name):
            return "delete this file if it is a copy in a cache, or else copy it again"
        return "restore this file from a copy, or delete it: the next run reads its images again"

    def __getitem__(self, number: int) -> ShardFile:
        if not 0 <= number < len(self._entries):
            raise UserError(f"{self._own}: the index names shard {number}, the store has none; run the ingest again")
        return ShardFile(self._store, self._entries[number])

    def __iter__(self) -> Iterator[ShardFile]:
        return (ShardFile(self._store, entry) for entry in self._entries)

    def map(self, number: int) -> MappedShard:
        """Return a shard, memory-mapped from the nearest place.

        Where the cache cannot take a shard, it is read from where it was written, with a warning in the log, once per
        process. This is impossible for a shard of an object store.

        Raises:
            UserError: The shard is missing or damaged, or is in an object store and the cache cannot take it.
        """
        shard, folder = self[number], cache_folder()
        if folder is None:
            if shard.path is not None:
                return MappedShard(shard.path)
            folder = Path(tempfile.gettempdir()) / f"rayreid-cache-{os.getuid()}"
        try:
            copy = ShardCache(folder).copy_of(shard)
        except CacheUnusableError as error:
            if shard.path is None:
                raise UserError(f"{error}; make room there, or set RAYREID_CACHE to a folder on another disk") from None
            warn_once(f"RAYREID_CACHE={error}; shards are read from where they were written")
            return MappedShard(shard.path)
        except FileNotFoundError:
            raise UserError(f"{shard}: the shard is missing; copy it again or run the ingest again") from None
        except (OSError, pa.ArrowException) as error:
            refuse_too_many_open(error, shard)
            raise UserError(f"{shard}: the shard cannot be read ({one_line(error)})") from error
        return MappedShard(copy.path, copy)


def place_in(store: str, file: str) -> Place:
    """Return the place of a file of a store; the query of a URI (`?region=…`) stays at its end."""
    if not is_uri(store):
        return Place(str(Path(store) / file))
    address, mark, query = store.partition("?")
    return Place(f"{address.rstrip('/')}/{file}{mark}{query}")
