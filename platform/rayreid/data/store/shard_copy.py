"""The files of a cache of shards: copies that readers hold on the disk, and copies that are being written."""

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from rayreid.errors import UserError, one_line

_FULL = (errno.ENOSPC, errno.EDQUOT)
_POLL_SECONDS = 0.05


class CacheUnusableError(Exception):
    """An error for a cache that cannot take a shard; the message names the folder and the reason.

    Args:
        folder: The folder of the cache.
        reason: Why it cannot take the shard.

    Attributes:
        fault: The folder and the kind of fault, which are the same for all shards that it concerns.
        remedy: What the user can do about it.
    """

    remedy = "set RAYREID_CACHE to a folder on a disk of this node that can be written"

    def __init__(self, folder: Path, reason: str):
        super().__init__(f"{folder}: {reason}")
        self.fault = str(self)


class CacheFullError(CacheUnusableError):
    """An error for a cache on a disk without room for a shard."""

    remedy = "make room there, or set RAYREID_CACHE to a folder on another disk"

    def __init__(self, folder: Path, reason: str):
        super().__init__(folder, reason)
        self.fault = f"{folder}: full"  # the sizes in the reason change from shard to shard


@dataclass(frozen=True)
class Copy:
    """A copy that stays on the disk as long as this object, or its memory map, exists.

    Attributes:
        path: The copy.
        lock: The open file that holds its shared lock.
        status: The status of the file, which tells it from a later one of the same name.
    """

    path: Path
    lock: IO[bytes]
    status: os.stat_result

    def map(self) -> mmap.mmap:
        """Return it as a memory map, which takes the lock over: its own descriptor is of the same open file.

        Raises:
            CacheUnusableError: It cannot be mapped.
            ValueError: It is empty.
        """
        with self.lock, usable(self.path.parent):
            return mmap.mmap(self.lock.fileno(), 0, access=mmap.ACCESS_READ)

    def remove(self) -> None:
        """Remove it from the disk, because it is damaged, unless another process has put a new one in its place."""
        with contextlib.suppress(OSError):
            if os.path.samestat(self.status, self.path.stat()):
                self.path.unlink()


def hold(path: Path) -> Copy | None:
    """Lock a copy against removal; return None if there is no copy.

    Raises:
        CacheUnusableError: It cannot be opened or locked.
    """
    with usable(path.parent):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        status = os.fstat(file.fileno())
    if status.st_nlink == 0:  # it was removed between the two calls
        file.close()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return Copy(path, file, status)


def remove_unused(path: Path) -> bool:
    """Remove a file of a cache, unless a process holds it; return whether it was removed."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError if somebody holds it
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return False
            path.unlink()
            return True
    except OSError as error:
        refuse_too_many_open(error, path)
        return False


class UnfinishedCopy:
    """The file that a copy is written to before it gets its name, locked by the only process that writes it.

    The lock ends with the process. So a file that a killed process left is known by having no lock: the next process
    that needs this copy writes it anew, and others remove it where they need the room.

    Opening waits while another process holds the lock. That process gives the file its name, or removes it; then this
    object is of no use, as `is_current` says. Leaving the context removes what has not been finished.

    Args:
        path: The path of the unfinished file.

    Raises:
        CacheUnusableError: It cannot be created or locked.
    """

    def __init__(self, path: Path):
        self.path = path
        with usable(path.parent):
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        try:
            self._lock()
        except CacheUnusableError:  # this disk has no locks, so nobody else is writing here
            self.__exit__()
            raise

    def _lock(self) -> None:
        """Lock the file, or return without a lock as soon as it is not current.

        A call that waits for the lock could wait for ever: once the file is finished, its readers hold shared locks.
        """
        while True:
            with usable(self.path.parent), contextlib.suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if not self.is_current():
                return
            time.sleep(_POLL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, CacheUnusableError):
            if self.is_current():
                self.path.unlink()
        with contextlib.suppress(OSError), self._file:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # closing keeps it while a process that was forked meanwhile lives

    def is_current(self) -> bool:
        """Return whether the path still names this file.

        It does not if another process finished or removed the file while this one waited for the lock, or if somebody
        removes it while it is written.
        """
        with usable(self.path.parent):
            try:
                return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
            except FileNotFoundError:
                return False

    def clear(self) -> None:
        """Remove what has been written."""
        with usable(self.path.parent):
            if os.fstat(self._file.fileno()).st_size:  # what is no regular file has no size, and cannot be cut
                self._file.truncate(0)
            self._file.seek(0)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        left = memoryview(data)
        with usable(self.path.parent):
            while left:
                left = left[self._file.write(left) :]

    def sync(self) -> None:
        """Force the bytes to the disk: a copy's name promises them, after a power failure, too."""
        with usable(self.path.parent):
            os.fsync(self._file.fileno())

    def finish(self, path: Path) -> None:
        """Give the file the name of a finished copy, if it is still current."""
        with usable(self.path.parent):
            if self.is_current():
                self.path.replace(path)


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turn an OSError within a `with` block into that of a cache which cannot be used.

    Raises:
        CacheFullError: The disk, or the user's share of it, is full.
        CacheUnusableError: Any other OSError.
        UserError: This process may open no more files.
    """
    try:
        yield
    except OSError as error:
        refuse_too_many_open(error, "a copy of a shard")
        kind = CacheFullError if error.errno in _FULL else CacheUnusableError
        raise kind(folder, error.strerror or one_line(error)) from None


def refuse_too_many_open(error: BaseException, what: object) -> None:
    """Raise a UserError if an error says that this process may open no more files: nothing is wrong with `what`."""
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise UserError(
            f"{what} cannot be opened: this process has {limit} open files, the limit of the system; raise it (ulimit "
            f"-n {4 * limit}) where the command, or Ray on each node, is started"
        ) from None
