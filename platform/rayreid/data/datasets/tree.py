"""The files below a folder of this machine, in an order that is the same every time."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from rayreid.data.store.shards import MissingImageError

_HIDDEN = re.compile(r"(?:^|/)(?:\.|(?:@eaDir|__MACOSX)/)")


def walk(root: Path, refused: Callable[[OSError], None]) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield everything below a folder that is not a folder itself: a folder's files by name, then its sub-folders.

    Links to folders are followed, each folder once. Only the names of one folder are in memory at a time, besides those
    of folders still to be listed.

    Args:
        root: The folder.
        refused: Called with the error of a folder that cannot be listed; the folder is passed over if it returns.

    Yields:
        The path relative to the root, posix, and the entry.
    """
    visited: set[tuple[int, int]] = set()
    waiting = [("", str(root))]
    while waiting:
        prefix, folder = waiting.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116  (Path is slow for millions)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)  # which of two links is followed must not vary
        except OSError as error:
            refused(error)
            continue
        folders = []
        for entry in entries:
            if _is_folder(entry):
                folders.append((f"{prefix}{entry.name}/", entry.path))
            else:
                yield prefix + entry.name, entry
        waiting += reversed(folders)


def is_hidden(path: str) -> bool:
    """Return whether a path relative to a root leads through a name that begins with a dot or a system's own folder.

    Synology keeps thumbnails in `@eaDir`, and macOS puts a second file for each into `__MACOSX` of an archive.
    """
    return _HIDDEN.search(path) is not None


def fault_of(entry: "os.DirEntry[str]") -> str | None:
    """Return why an entry of a folder cannot be read as a file; None if it can."""
    try:
        if entry.is_file():
            return None
        entry.stat()
    except FileNotFoundError:
        return "broken link"
    except OSError as error:
        return error.strerror or str(error)
    return "no plain file"  # a pipe, for example, on which a reader would wait forever


def check_plain(path: str | Path) -> None:
    """Raise an error for a path that is neither a file nor a folder: opening a pipe would wait forever.

    Raises:
        MissingImageError: The path is a pipe, a device or the like, or no valid file name.
        OSError: There is nothing, or it cannot be examined.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  (Path is slow for millions)
    except ValueError as error:
        raise MissingImageError(f"{path!r}: {error}", "no file name") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise MissingImageError(f"{path} is no plain file", "no plain file")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return False
