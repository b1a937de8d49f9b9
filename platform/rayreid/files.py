"""Folders and whole files on storage that several processes write to at once."""

import contextlib
import os
import uuid
from pathlib import Path

from rayreid.errors import UserError

_RACES = 1000  # lost in a row before it is believed


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
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
