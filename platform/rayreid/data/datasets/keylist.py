"""Lists of keys: text, JSON, or a pickle such as LUPerson's `keys.pkl`, which is read without unpickling."""

import json
from collections.abc import Iterator
from pathlib import Path

from rayreid.data.datasets.pickled_keys import read_pickled_keys
from rayreid.errors import UserError, one_line


def check_key_list(path: Path) -> None:
    """Raise a UserError if the file does not exist or is of another kind."""
    if path.suffix.lower() not in _READERS:
        raise UserError(f"{path}: a list of keys ends in {', '.join(_READERS)}, not {path.suffix!r}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such list of keys")


def read_keys(path: Path) -> Iterator[str]:
    """Yield a list's keys, in their order and with their repetitions.

    Only JSON is held in memory; a pickle takes eight bytes per key.

    Args:
        path: `.txt`: one key a line. `.json`: a list of strings, an object with such a list under "keys", or one whose
            names are the keys. `.pkl`: a pickled list of strings, or a dict with such a list under "keys". The strings
            are extracted from the pickle; nothing in it is loaded, let alone executed.

    Raises:
        UserError: The file cannot be read or contains something else.
    """
    check_key_list(path)
    try:
        yield from _READERS[path.suffix.lower()](path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: the list of keys cannot be read: {one_line(error, 'all')}") from error


def _read_text(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        yield from (line.strip() for line in file if line.strip())


def _read_json(path: Path) -> Iterator[str]:
    keys = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(keys, dict):
        keys = keys.get("keys", list(keys))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("it holds something else than a list of strings")
    yield from keys


_READERS = {".txt": _read_text, ".json": _read_json, ".pkl": read_pickled_keys}
