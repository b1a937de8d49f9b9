"""The shard files of a store: where they are, and which of them are mapped into memory."""

import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from rayreid.data.datasets.place import Place, is_uri
from rayreid.data.store.manifest import ORIGIN
from rayreid.data.store.mapped_shard import DamagedShardError, MappedShard
from rayreid.data.store.shard_cache import ShardCache, default_cache, warn_once
from rayreid.data.store.shard_copy import CacheFullError, CacheUnusableError, Copy, refuse_too_many_open
from rayreid.errors import UserError, one_line
from rayreid.files import digest_of
from rayreid.paths import cache_folder

_PATIENCE_SECONDS, _POLL_SECONDS = 60.0, 1.0

_all_files: weakref.WeakValueDictionary[int, "ShardFiles"] = weakref.WeakValueDictionary()
"""The files of all stores that are open in this process."""


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

    Attributes:
        mapped: The shards that are memory-mapped, by number. Copies are dropped where the disk has no room for another.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]):
        self._own = directory
        self._store: str = manifest.get(ORIGIN, str(directory))
        self._entries: list[Mapping[str, Any]] = manifest["shards"]
        self.mapped: dict[int, MappedShard] = {}
        _all_files[id(self)] = self

    @property
    def origin(self) -> str:
        """Return the path or URI of the store that holds them."""
        return self._store

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> ShardFile:
        if not 0 <= number < len(self._entries):
            raise UserError(f"{self._own}: the index names shard {number}, the store has none; run the ingest again")
        return ShardFile(self._store, self._entries[number])

    def __iter__(self) -> Iterator[ShardFile]:
        return (ShardFile(self._store, entry) for entry in self._entries)

    def map(self, number: int) -> MappedShard:
        """Map a shard into memory from the nearest place, and return it.

        Where the cache cannot take a shard, it is read from where it was written, with a warning in the log, once per
        process. This is impossible for a shard of an object store.

        Raises:
            UserError: The shard is missing or damaged, or is in an object store and the cache cannot take it.
        """
        shard = self[number]
        found = self.mapped[number] = self._map(shard)
        return found

    def _map(self, shard: ShardFile) -> MappedShard:
        folder = cache_folder()
        if folder is None and shard.path is not None:
            return MappedShard(shard.path)
        try:
            return self._map_copy(shard, default_cache() if folder is None else ShardCache(folder))
        except CacheUnusableError as error:
            if shard.path is None:
                raise UserError(f"{error}; {error.remedy}") from None
            warn_once(f"RAYREID_CACHE={error}; shards are read from where they were written", error.fault)
            return MappedShard(shard.path)
        except FileNotFoundError:
            raise UserError(f"{shard}: the shard is missing; copy it again or run the ingest again") from None
        except (OSError, pa.ArrowException) as error:
            refuse_too_many_open(error, shard)
            raise UserError(f"{shard}: the shard cannot be read ({one_line(error)})") from error

    def _map_copy(self, shard: ShardFile, cache: ShardCache) -> MappedShard:
        copy = self._copy(shard, cache)
        try:
            return MappedShard(copy.path, copy)
        except DamagedShardError:
            _remove_damaged(copy)
        copy = self._copy(shard, cache)
        return MappedShard(copy.path, copy)

    def _copy(self, shard: ShardFile, cache: ShardCache) -> Copy:
        """Return the copy of a shard; if it can be read from nowhere else, other mapped shards are dropped for it.

        Other processes drop theirs when they need room, so it is worth waiting for them. Nothing is dropped for a shard
        that can be read from where it was written: training would copy a whole shard for nearly every image.
        """
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return cache.copy_of(shard)
            except CacheFullError:
                if shard.path is not None:
                    raise
                if not _drop_copies():
                    if not cache.files() or time.monotonic() > until:
                        raise
                    time.sleep(_POLL_SECONDS)
                warn_once(
                    f"{cache.folder}: this disk does not hold all shards of {self._store}, so they are copied again "
                    "and again; RAYREID_CACHE on a larger disk would be faster",
                    f"{cache.folder}: small",
                )

    def renew(self, number: int, shard: MappedShard) -> bool:
        """Replace a mapped copy with a wrong image by a new copy; return whether reading again makes sense.

        It does not for an original, nor for what is a new copy already. A copy that another thread or process has made
        since is used as it is.

        Args:
            number: The shard's number.
            shard: What the wrong image was read from.

        Raises:
            UserError: The shard cannot be copied.
        """
        if shard.copy is None or shard.renewed:
            return False
        _remove_damaged(shard.copy)
        self.map(number).renewed = True
        return True

    def remedy(self, shard: MappedShard) -> str:
        """Return what to do about a wrong image in a mapped shard."""
        if shard.copy is not None:
            return "a new copy was no better; delete this file, or set RAYREID_CACHE to a folder on another disk"
        if shard.path != self._own.joinpath("shards", shard.path.name):
            return "copy it again"
        return "restore this file from a copy, or delete it: the next run reads its images again"


def _drop_copies() -> bool:
    """Drop the copies that all stores of this process have mapped; return whether there were any.

    Images that are in use keep the memory map of their shard, and with it the copy. What is dropped and needed again
    while its copy still exists only costs a new memory map.
    """
    opened = [reference() for reference in _all_files.valuerefs()]
    mapped = [files.mapped for files in opened if files is not None]
    found = [(shards, number) for shards in mapped for number, one in list(shards.items()) if one.copy is not None]
    for shards, number in found:
        shards.pop(number, None)
    return bool(found)


def _remove_damaged(copy: Copy) -> None:
    copy.remove()
    warn_once(f"{copy.path}: this copy of a shard is damaged, and is made again", str(copy.path))


def place_in(store: str, file: str) -> Place:
    """Return the place of a file of a store; the query of a URI (`?region=…`) stays at its end."""
    if not is_uri(store):
        return Place(str(Path(store) / file))
    address, mark, query = store.partition("?")
    return Place(f"{address.rstrip('/')}/{file}{mark}{query}")
