"""Folders and atomically written files on storage to which several processes write at once."""

import contextlib
import errno
import hashlib
import math
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rayreid.errors import UserError

_RACES = 1000  # number of consecutive failures before the error is taken as real

_CHUNK = 2**20

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems that cannot sync folders

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written."""

Guard = Callable[[], None]
"""A function that raises if this process may no longer write to a folder."""

_GUARDS: dict[Path, Guard] = {}


def make_folder(path: Path) -> None:
    """Create an output folder and its parents, even while other processes create and remove them.

    Raises:
        UserError: The folder cannot be created.
    """
    try:
        create_folder(path)
    except OSError as error:
        raise UserError(f"{path}: cannot make this output folder ({error.strerror}); see RAYREID_ROOT") from None


def create_folder(path: Path) -> None:
    """Create a folder as `make_folder` does, for a caller that explains errors itself.

    Raises:
        OSError: The folder cannot be created.
    """
    for _ in range(_RACES):
        # If another process removes a folder between two steps of `mkdir`, it seems that it cannot be created.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.mkdir(parents=True, exist_ok=True)
            return
    path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def guarded(folder: Path, guard: Guard | None) -> Iterator[None]:
    """Check a guard before each file that this process writes below a folder, within a `with` block.

    Args:
        folder: The folder.
        guard: The guard; None checks nothing.
    """
    if guard is None:
        yield
        return
    outer = _GUARDS.get(folder)
    _GUARDS[folder] = guard
    try:
        yield
    finally:
        if outer is None:
            del _GUARDS[folder]
        else:
            _GUARDS[folder] = outer


def guard_of(folder: Path) -> Guard | None:
    """Return the guard of a folder, for the processes that write to it for this one."""
    return _GUARDS.get(folder)


def check_guards(path: Path) -> None:
    """Raise what the guards of the folders above a path raise, or of the path itself."""
    for folder, guard in list(_GUARDS.items()):
        if path.is_relative_to(folder):
            guard()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: readers see the old content or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; the file written there replaces `path` when the block succeeds.

    If the block fails, the temporary file is removed, and `path` stays unchanged. An OSError without a path gets this
    one.

    The guards of the folders above are checked when the temporary file exists. Whoever takes a folder over first makes
    its guard raise, and then removes the temporary files. So a process that is stopped between the check and the
    renaming finds nothing to rename when it wakes.

    Args:
        path: The file to write.
        sync: Whether to force the bytes to disk before the file gets its name. This is necessary whenever readers take
            the name as proof that the content is complete.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with naming(path):
            yield temporary
            if sync:
                sync_file(temporary)  # else a power failure could leave an empty file under that name
            check_guards(path)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def creating(path: Path) -> Iterator[Path]:
    """Yield a temporary path like `replacing`, for a file that must not exist yet.

    Raises:
        FileExistsError: The file exists.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with naming(path):
            yield temporary
            sync_file(temporary)
            check_guards(path)
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append_lines(path: Path, lines: bytes) -> None:
    """Append whole lines to a file, and force them to disk, with the file's name if it is new.

    A line that an earlier call left unfinished does not run into these. An error may leave a part of them.

    Args:
        path: The file; created if it does not exist.
        lines: Lines, each with its end.
    """
    check_guards(path)
    # Without a buffer: closing one whose writing failed would write its bytes again, behind those that were written.
    with naming(path), path.open("a+b", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size and stream.seek(-1, os.SEEK_END) is not None and stream.read(1) != b"\n":
            lines = b"\n" + lines
        while lines:
            lines = lines[stream.write(lines) :]
        os.fsync(stream.fileno())
    if not size:
        sync_folder(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError within a `with` block the path that was written.

    The error of a full disk has no path, and that of a copy has the source's.
    """
    try:
        yield
    except Exception as error:
        for link in (error, error.__context__):
            # Without an error number, an OSError is only a text, which a path would replace.
            if not isinstance(link, OSError) or link.errno is None:
                continue
            if link.filename is None or link.filename2 is not None:
                link.filename = str(path)
                del link.filename2  # set to None, it would be shown: 'path' -> None
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of killed writers, also below the folder. No other process may be writing here."""
    for left_over in folder.rglob(f"*{TEMPORARY}"):
        left_over.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Force the bytes of a file to disk."""
    with naming(path), path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Force the names of a folder's files to disk, where the file system knows how to."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
        finally:
            os.close(descriptor)


def checksum(path: Path, size: int | None = None) -> str:
    """Return the blake2b checksum of a file's bytes, or of the first `size` of them (32 hex digits)."""
    with path.open("rb") as stream:
        return digest_of(stream, size)


def digest_of(stream: IO[bytes], size: int | None = None) -> str:
    """Return the blake2b checksum of the bytes that are left in a stream, or of the next `size` (32 hex digits)."""
    digest = hashlib.blake2b(digest_size=16)
    left = math.inf if size is None else size
    while chunk := stream.read(int(min(_CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()
