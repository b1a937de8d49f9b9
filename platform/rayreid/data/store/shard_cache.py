"""Copies of shards on a node's own disk, which all processes of the node share.

A folder that several nodes see, or an object store, is slow where images are read in random order. `RAYREID_CACHE`
names a folder on a disk of the node itself. Each shard is copied there when one of its images is first needed, once per
node, and is read from there by all processes.

A copy is named by the checksum of its bytes, so stores that contain the same shard share it. Whoever reads a copy holds
a shared lock on it, which ends with the process at the latest; only copies that nobody holds are removed for others.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import IO, Protocol, TypeVar

from rayreid.data.store.shard_copy import (
    CacheFullError,
    CacheUnusableError,
    Copy,
    UnfinishedCopy,
    hold,
    remove_unused,
    usable,
)
from rayreid.errors import UserError
from rayreid.files import TEMPORARY, create_folder

KEEP_FREE = 0.05
"""Share of the disk that stays free. Ray moves no objects to a disk that is more than 95 % full."""
_FINISHED = ".arrow"
_OWN = re.compile(rf"[0-9a-f]{{32}}({re.escape(_FINISHED)}|{re.escape(TEMPORARY)})")
"""Names of the files that are made here. The folder may hold files of others, which are none of its business."""
_CHUNK = 2**22
_RACES = 1000  # times that another process may take the file of a copy away before that is taken for a fault
_Result = TypeVar("_Result")
_warned: set[Hashable] = set()


class Origin(Protocol):
    """A shard where it was written.

    Attributes:
        checksum: Checksum of its bytes; see `rayreid.files.checksum`.
    """

    checksum: str

    def size(self) -> int | None:
        """Return the number of its bytes; None if it is missing."""
        ...

    def open(self) -> IO[bytes]:
        """Open it for reading from start to end."""
        ...


class ShardCache:
    """A folder of copies of shards.

    Args:
        folder: The folder, on a disk of this node; made when it is first needed.
        private: Whether only this user may use it. Other users could have made a folder of a name that they can guess.
    """

    def __init__(self, folder: Path, private: bool = False):
        self.folder = folder
        self._private = private

    def copy_of(self, origin: Origin) -> Copy:
        """Return the copy of a shard, after making it if there is none.

        If the disk is full, what killed processes left unfinished is removed, and then the copies that were opened
        longest ago, except those that a process holds.

        Raises:
            CacheFullError: The disk is full and no copy can be removed.
            CacheUnusableError: The folder cannot be written, or must not be used.
            UserError: The bytes of the original do not match its checksum, or are not all there.
            OSError: The original cannot be read.
        """
        path = self.folder / f"{origin.checksum}{_FINISHED}"
        for _ in range(_RACES):
            self._make()
            if (copy := hold(path)) is not None:
                return copy
            self._write(path, origin)
        raise CacheUnusableError(self.folder, "its files vanish while they are written")

    def files(self) -> list[Path]:
        """Return the files of the cache, in the order in which they are removed unless a process holds them."""
        try:
            return sorted(filter(lambda path: _OWN.fullmatch(path.name), self.folder.iterdir()), key=_worth)
        except OSError:
            return []

    def _make(self) -> None:
        with usable(self.folder):
            if not self._private:
                create_folder(self.folder)
                return
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(mode=0o700)
            found = self.folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise CacheUnusableError(self.folder, "this is not a folder of this user's own")
            if found.st_mode & 0o077:  # earlier versions made it for all to read
                self.folder.chmod(0o700)

    def _write(self, path: Path, origin: Origin) -> None:
        """Write a copy, unless another process of this node has done so by the time that it can be locked."""
        temporary = path.with_suffix(TEMPORARY)  # one name, so that a process that was killed leaves one file at most
        with self._with_room(lambda: UnfinishedCopy(temporary)) as unfinished:
            with usable(self.folder):
                if not unfinished.is_current() or path.exists():
                    return
            size = origin.size() or 0  # a missing one fails where it is opened
            found, count = self._with_room(lambda: self._transfer(origin, unfinished, size))
            if found != origin.checksum and count < size:
                raise UserError(f"{origin}: the storage sent {count} of {size} bytes; run the command again")
            if found != origin.checksum:
                raise UserError(f"{origin}: its bytes changed since the ingest; copy it again or ingest again")
            unfinished.finish(path)

    def _with_room(self, attempt: Callable[[], _Result]) -> _Result:
        """Return what an attempt returns; as long as the disk is full, remove a file and try again.

        Other programs write to the disk, too, so it may be full although there was room before.
        """
        while True:
            try:
                return attempt()
            except CacheFullError:
                if not any(map(remove_unused, self.files())):  # stops at the first that is removed
                    raise

    def _transfer(self, origin: Origin, unfinished: UnfinishedCopy, size: int) -> tuple[str, int]:
        """Copy a shard; return the checksum and the number of the bytes that were read."""
        unfinished.clear()  # first, because what a killed process left there takes room
        self._check_room(size)
        digest, count = hashlib.blake2b(digest_size=16), 0
        with origin.open() as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                unfinished.write(chunk)
                count += len(chunk)
        unfinished.sync()
        return digest.hexdigest(), count

    def _check_room(self, size: int) -> None:
        with usable(self.folder):
            disk = shutil.disk_usage(self.folder)
        if disk.free - size < KEEP_FREE * disk.total:
            raise CacheFullError(
                self.folder,
                f"no room for a shard of {size / 2**20:.0f} MiB; {disk.free / 2**20:.0f} MiB of the disk are free, and "
                f"{100 * KEEP_FREE:.0f} % of it stay free",
            )


def default_cache() -> ShardCache:
    """Return the cache for stores that can only be read through one, where `RAYREID_CACHE` is not set."""
    return ShardCache(Path(tempfile.gettempdir()) / f"rayreid-cache-{os.getuid()}", private=True)


def _worth(path: Path) -> tuple[bool, float]:
    """Return what files are sorted by: unfinished ones come first, then those that were opened longest ago."""
    try:
        return path.suffix == _FINISHED, path.stat().st_mtime
    except OSError:  # another process removed it
        return False, 0.0


def warn_once(message: str, about: Hashable) -> None:
    """Log a warning, unless this process has logged one about the same."""
    if about not in _warned:
        _warned.add(about)
        logging.getLogger("rayreid").warning(message)
