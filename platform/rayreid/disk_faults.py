"""Refusals of the storage (full, not permitted, failing, gone) as one line that names the place and the remedy.

Nothing catches these errors where they are raised: `files.replacing` sees to it that they carry a path, and they are
explained at three boundaries, a training worker, a stage and the command line.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rayreid.errors import UserError, cause_of

_AGAIN = "and run the same command again: it continues from there"
FULL = f"no room is left on this disk ({{reason}}): make room, {_AGAIN}"
_CLOSED = "access is refused ({reason}): permit it to this user, or choose another place (RAYREID_ROOT for outputs)"
_FAILING = f"the storage does not answer ({{reason}}): repair or mount it, {_AGAIN}"
_GONE = f"this folder has vanished while it was in use: mount or restore it, {_AGAIN}"

_FOLDER = "a folder lies where a file belongs: move it away, and run the same command again"

_ANSWERS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _CLOSED),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO), _FAILING),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), _GONE),
    errno.EISDIR: _FOLDER,
}
_AMBIGUOUS = {errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENOTCONN, errno.ENODEV, errno.ENXIO}
"""Numbers that sockets and devices give, too: they count only in an error that has a path."""
_TEXTS = {
    re.escape(os.strerror(errno.ENOSPC)): errno.ENOSPC,
    re.escape(os.strerror(errno.EDQUOT)): errno.EDQUOT,
    re.escape(os.strerror(errno.EROFS)): errno.EROFS,
    "database or disk is full": errno.ENOSPC,
    r"\d+ requested and \d+ written": errno.ENOSPC,  # NumPy
    r"inline_container\.cc.*unexpected pos": errno.ENOSPC,  # torch
    "attempt to write a readonly database": errno.EROFS,
    "disk I/O error": errno.EIO,
    "unable to open database file": errno.ENOENT,
}
"""What SQLite, Rust, NumPy and the traceback of another process say instead of raising an OSError with a number."""


class StorageError(UserError):
    """The storage refuses to be written or read; the message names the place and says what to do."""


@contextlib.contextmanager
def explained(place: Path) -> Iterator[None]:
    """Raise refusals of the storage within a `with` block as a `StorageError`.

    Args:
        place: The folder in which the block works; it is named if the error does not say which it was.

    Raises:
        StorageError: The storage refused, as `as_storage_error` recognises it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refused = as_storage_error(error, place)
        if refused is None:
            raise
        raise refused from error


@contextlib.contextmanager
def told_to_user(place: Callable[[], Path] = Path.cwd) -> Iterator[None]:
    """Raise each error that the user can fix within a `with` block as the `UserError` that the command line prints.

    Args:
        place: Returns the folder in use (default: the current one); see `as_storage_error`.

    Raises:
        UserError: An error that the user can fix, or that the storage caused, also where a Ray task raised it.
    """
    try:
        yield
    except Exception as error:
        told = as_user_error(error, place)
        if told is None or told is error:
            raise
        raise told from error


def as_user_error(error: BaseException, place: Callable[[], Path]) -> UserError | None:
    """Return an error as one that the user can fix; None if it is a fault of the program.

    Args:
        error: The error, which may have been raised in a Ray task.
        place: Returns the folder in use; see `as_storage_error`.
    """
    cause = cause_of(error)
    return cause if isinstance(cause, UserError) else as_storage_error(error, place())


def as_storage_error(error: BaseException, place: Path) -> StorageError | None:
    """Return the explanation of an error that the storage caused; None if it did not.

    Args:
        error: The error; those that it wraps, or in whose handling it was raised, are examined, too.
        place: The folder in use. It is named if the error has no path, and a missing file counts as a refusal only if
            this folder is gone.
    """
    links = list(_chain(error))
    told = next((link for link in links if isinstance(link, StorageError)), None)
    if told is not None:  # what came after it, as when MLflow's database was to record it, says less
        return told
    for link in sorted(links, key=lambda link: _path(link) is None):  # one that has a path says most
        code = _code(link)
        path = _path(link)
        if code is None or (code in _AMBIGUOUS and path is None):
            continue
        if (path is None or place in path.parents) and not _exists(place):
            return StorageError(f"{place}: {_GONE}")
        if _ANSWERS[code] is not _GONE:
            return StorageError(f"{_named(path, code, place)}: {_ANSWERS[code].format(reason=os.strerror(code))}")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those behind it: an error of a Ray task, its cause, the one during whose handling it arose."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        cause = cause_of(error)
        error = cause if cause is not error else error.__cause__ or error.__context__


def _code(error: BaseException) -> int | None:
    """Return the number of a refusal, also where only the text tells it; None if the error is another one."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _ANSWERS else None
    text = str(error)
    return next((code for pattern, code in _TEXTS.items() if re.search(pattern, text)), None)


def _path(error: BaseException) -> Path | None:
    path = getattr(error, "filename", None)
    return Path(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else None


def _named(path: Path | None, code: int, place: Path) -> Path:
    """Return the place to name: a folder, or a file that cannot be opened, otherwise the folder of what was written."""
    if path is not None:
        return path if _is_folder(path) or (_ANSWERS[code] in (_CLOSED, _FOLDER) and _exists(path)) else path.parent
    if _ANSWERS[code] is not FULL:
        return place
    try:  # libraries also write temporary files
        return min(place, Path(tempfile.gettempdir()), key=lambda folder: shutil.disk_usage(folder).free)
    except OSError:
        return place


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # it is there, and cannot be looked at
        return True
