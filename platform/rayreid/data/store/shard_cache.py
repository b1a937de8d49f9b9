"""Copies of shards on a node's own disk, which all processes of the node share.

A folder that several nodes see, or an object store, is slow where images are read in random order. `RAYREID_CACHE`
names a folder on a disk of the node itself. Each shard is copied there when one of its images is first needed, once per
node, and is read from there by all processes.

A copy is named by the checksum of its bytes, so stores that contain the same shard share it. Whoever reads a copy holds
a shared lock on it, which ends with the process at the latest; only copies that nobody holds are removed for others.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import mmap
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from rayreid.errors import UserError, one_line
from rayreid.files import TEMPORARY, make_folder

KEEP_FREE = 0.05
"""Share of the disk that stays free. Ray moves no objects to a disk that is more than 95 % full."""
_SUFFIX = ".arrow"
_CHUNK = 2**22
_FULL = (errno.ENOSPC, errno.EDQUOT)
_warned: set[str] = set()


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


@dataclass(frozen=True)
class Copy:
    """A copy that stays on the disk as long as this object, or its memory map, exists.

    Attributes:
        path: The copy.
        lock: The open file that holds its shared lock.
    """

    path: Path
    lock: IO[bytes]

    def map(self) -> mmap.mmap:
        """Return it as a memory map, which takes the lock over: its own descriptor is of the same open file.

        Raises:
            OSError: It cannot be mapped.
            ValueError: It is empty.
        """
        with self.lock:
            return mmap.mmap(self.lock.fileno(), 0, access=mmap.ACCESS_READ)


class CacheUnusableError(Exception):
    """An error for a cache that cannot take a shard; the message names the folder and the reason."""


class ShardCache:
    """A folder of copies of shards.

    Args:
        folder: The folder, on a disk of this node; made when it is first needed.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def copy_of(self, origin: Origin) -> Copy:
        """Return the copy of a shard, after making it if there is none.

        If the disk is full, the copies that were opened longest ago are removed, except those that a process holds.

        Raises:
            CacheUnusableError: The folder cannot be written, or the disk is full and no copy can be removed.
            UserError: The bytes of the original do not match its checksum.
            OSError: The original cannot be read.
        """
        path = self.folder / f"{origin.checksum}{_SUFFIX}"
        while (copy := _hold(path)) is None:
            with self._alone(path):
                if not path.exists():
                    self._write(path, origin)
        return copy

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Hold the exclusive right to write a copy; wait while another process of this node writes it."""
        try:
            make_folder(self.folder)
            lock = path.with_suffix(".lock").open("wb")
        except (OSError, UserError) as error:
            refuse_too_many_open(error, path)
            raise CacheUnusableError(f"{self.folder}: {one_line(error)}") from None
        with lock:
            with _usable(self.folder):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, path: Path, origin: Origin) -> None:
        temporary = path.with_suffix(TEMPORARY)  # one name, so that a process that was killed leaves one file at most
        size = origin.size()
        try:
            while True:
                self._make_room(size or 0)  # a missing one fails where it is opened
                try:
                    found = _transfer(origin, temporary)
                    break
                except _WriteError as error:
                    # Other programs write to the disk, too. Each further attempt needs a copy that can be removed.
                    if error.errno not in _FULL or not self._remove_oldest():
                        raise CacheUnusableError(f"{self.folder}: {error.strerror}") from None
            if found != origin.checksum:
                raise UserError(f"{origin}: its bytes changed since the ingest; copy it again or ingest again")
            with _usable(self.folder):
                temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        while True:
            with _usable(self.folder):
                disk = shutil.disk_usage(self.folder)
            if disk.free - size >= KEEP_FREE * disk.total:
                return
            if not self._remove_oldest():
                raise CacheUnusableError(
                    f"{self.folder}: no room for a shard of {size / 2**20:.0f} MiB; {disk.free / 2**20:.0f} MiB of the "
                    f"disk are free, and {100 * KEEP_FREE:.0f} % of it stay free"
                )

    def _remove_oldest(self) -> bool:
        """Remove the copy that was opened longest ago among those that nobody holds; return whether there was one."""
        for path in sorted(self.folder.glob(f"*{_SUFFIX}"), key=_last_opened):
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError if somebody holds it
                path.unlink()
                return True
        return False


class _WriteError(OSError):
    """An error of the disk that the copy is written to, as opposed to the storage that it is read from."""


def _transfer(origin: Origin, target: Path) -> str:
    """Copy a shard and return the checksum of what was read."""
    digest = hashlib.blake2b(digest_size=16)
    with origin.open() as source, _sink(target) as sink:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            with _marked():
                sink.write(chunk)
        with _marked():
            sink.flush()
            os.fsync(sink.fileno())  # a copy's name promises its bytes, after a power failure, too
    return digest.hexdigest()


@contextlib.contextmanager
def _sink(target: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing, and mark the errors of closing it, too: what is still in its buffer is written then."""
    with _marked():
        sink = target.open("wb")
    try:
        yield sink
    finally:
        with _marked():
            sink.close()


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turn an OSError into that of a cache which cannot be used."""
    try:
        yield
    except OSError as error:
        refuse_too_many_open(error, folder)
        raise CacheUnusableError(f"{folder}: {error.strerror or error}") from None


@contextlib.contextmanager
def _marked() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        refuse_too_many_open(error, "a copy of a shard")
        raise _WriteError(error.errno, error.strerror) from None


def _hold(path: Path) -> Copy | None:
    """Lock a copy against removal; return None if there is no copy."""
    with _usable(path.parent):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink == 0:  # it was removed between the two calls
        file.close()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return Copy(path, file)


def _last_opened(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process removed it
        return 0.0


def refuse_too_many_open(error: BaseException, what: object) -> None:
    """Raise a UserError if an error says that this process may open no more files: nothing is wrong with `what`."""
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise UserError(
            f"{what} cannot be opened: this process has {limit} open files, the limit of the system; raise it (ulimit "
            f"-n {4 * limit}) where the command, or Ray on each node, is started"
        ) from None


def warn_once(message: str) -> None:
    """Log a warning, once per process."""
    if message not in _warned:
        _warned.add(message)
        logging.getLogger("rayreid").warning(message)
