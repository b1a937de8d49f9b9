"""Folders and whole files on storage that several processes write to at once."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from rayreid.errors import UserError

_RACES = 1000  # lost in a row before it is believed

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written."""


def make_folder(path: Path) -> None:
    """Make a folder and those above it, while others may make and remove them, too.

    Raises:
        UserError: it cannot be made.
    """
    try:
        for _ in range(_RACES):
            # A folder that another process removes between two steps of `mkdir` looks like one that cannot be made.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                path.mkdir(parents=True, exist_ok=True)
                return
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot make this output folder ({error.strerror}); see RAYREID_ROOT") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: readers see the old content or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` for the block to write to; it replaces `path` when the block succeeds.

    When the block fails the temporary file is removed, and `path` stays as it was.

    Args:
        path: The file to write.
        sync: Force the bytes to disk before the file gets its name. Needed wherever the name vouches for the bytes.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        yield temporary
        if sync:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())  # or a power cut could leave a name that vouches for empty bytes
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of writers that were killed. Call it only when no other process writes here."""
    for left_over in folder.glob(f"*{TEMPORARY}"):
        left_over.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """Return the blake2b checksum of a file's bytes (32 hex digits)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
