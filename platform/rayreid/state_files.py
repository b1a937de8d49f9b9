"""State files that are read back from storage: whatever is in one, it is refused in one line or moved aside.

A disk may lose the end of a file, a copy may leave it empty, and another program may have written it. So each file is
compared with what its writer writes. A file that a command can do without is moved aside and made anew; any other is
named in an error that says what to do. A refusal of the storage (no permission, a failing disk) is no damage: see
`rayreid.disk_faults`.
"""

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rayreid.errors import UserError, escaped, one_line
from rayreid.files import check_guards
from rayreid.forms import Form, parse

DAMAGED = ".damaged-"
"""What the name of a file that was moved aside has after the former name."""

AGAIN = "run the same command again"

_MOST_BYTES = 2**28  # of a JSON file; the manifest of 100,000 shards has 15 MB
_MOST_CHARACTERS = 200

T = TypeVar("T")


class DamagedFileError(UserError):
    """Raised for a state file that does not hold what its writer writes, or is missing.

    Attributes:
        why: What is wrong with it.
    """

    why = ""


def read_json(path: Path, form: Form, remedy: str = AGAIN) -> Any:
    """Return the content of a JSON file, as `reading` reads it.

    Raises:
        DamagedFileError: The file is missing, is no JSON, or has another form.
    """
    with reading(path, remedy):
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"{size:,} bytes")
        return parse(path.read_bytes(), form)


def read_text(path: Path, remedy: str = AGAIN) -> str:
    """Return the content of a text file, as `reading` reads it.

    Raises:
        DamagedFileError: The file is missing, or is not UTF-8.
    """
    with reading(path, remedy):
        return path.read_text(encoding="utf-8")


def read_array(path: Path, dimensions: int, rows: int | None = None, remedy: str = AGAIN) -> np.ndarray:
    """Return a memory-mapped array of floating-point numbers, as `reading` reads it.

    Args:
        path: The `.npy` file.
        dimensions: Number of the array's dimensions; the last ones are not empty.
        rows: Length of the first dimension; None: any from 1.
        remedy: What to do if it is damaged.

    Raises:
        DamagedFileError: The file is missing, or holds something else.
    """
    with reading(path, remedy):
        array: np.ndarray = np.load(path, mmap_mode="r")
        if array.ndim != dimensions or array.dtype.kind != "f" or not all(array.shape[1:]):
            raise ValueError(f"an array of {array.shape} {array.dtype}")
        if not len(array) or (rows is not None and len(array) != rows):
            raise ValueError(f"{len(array)} rows{'' if rows is None else f', not {rows}'}")
        return array


@contextlib.contextmanager
def reading(path: Path, remedy: str = AGAIN) -> Iterator[None]:
    """Raise whatever reading a state file raises within a `with` block as a `DamagedFileError`.

    A UserError, and an OSError that says that the storage refuses, are raised as they are.

    Args:
        path: The file.
        remedy: What to do if it is damaged, as the end of a sentence.
    """
    if path.is_dir():
        raise damaged(path, "it is a folder", remedy)
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        if not path.parent.is_dir():  # the storage is gone
            raise
        missing = DamagedFileError(f"{escaped(str(path))} is missing: {remedy}")
        missing.why = "it is missing"
        raise missing from error
    except Exception as error:  # for damaged bytes, the readers of NumPy and Arrow raise arbitrary exceptions
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's have a number only if the storage refuses
            raise
        raise damaged(path, one_line(error, limit=_MOST_CHARACTERS), remedy) from error


def damaged(path: Path, why: str, remedy: str = AGAIN) -> DamagedFileError:
    """Return the error for a damaged file."""
    error = DamagedFileError(f"{escaped(str(path))} is damaged ({escaped(why)}): {remedy}")
    error.why = why
    return error


def remake(folder: Path) -> str:
    """Return the remedy for a damaged file of a complete artifact in a folder."""
    return f"remove {escaped(str(folder))} and {AGAIN}, which makes it anew"


def if_whole(path: Path, read: Callable[[], T], instead: str) -> T | None:
    """Return what reading a file returns; None if there is no file, or a damaged one, which is then moved aside.

    Args:
        path: The file, which can be made anew.
        read: Reads it; raises a `DamagedFileError` if it is damaged.
        instead: What happens without it, for the warning.
    """
    if not path.exists():
        return None
    try:
        return read()
    except DamagedFileError:
        try:
            return read()  # another process may have replaced it meanwhile
        except DamagedFileError as error:
            move_aside(path, error.why, instead)
            return None


def move_aside(path: Path, why: str, instead: str) -> None:
    """Give a damaged file another name, beside it, and warn; nothing happens if another process was quicker.

    Args:
        path: The file or folder.
        why: What is wrong with it.
        instead: What happens without it.
    """
    check_guards(path)
    aside = aside_of(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        logging.getLogger("rayreid").warning(
            "%s is damaged (%s): it is moved to %s, which you can delete, and %s",
            escaped(str(path)),
            escaped(why),
            aside.name,
            instead,
        )


def aside_of(path: Path) -> Path:
    """Return a new name for a file that is moved aside."""
    return path.with_name(f"{path.name}{DAMAGED}{uuid.uuid4().hex[:8]}")
