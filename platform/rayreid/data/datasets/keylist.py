"""Lists of keys: one a line, JSON, or a pickled list as LUPerson's `keys.pkl`, read without unpickling it."""

import json
import pickletools
from collections.abc import Iterator
from pathlib import Path

from rayreid.errors import UserError

_STRINGS = frozenset(
    ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING")
)
_LISTS = frozenset(("EMPTY_LIST", "LIST"))
_FRAME = frozenset(("PROTO", "FRAME", "MARK", "APPEND", "APPENDS", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"))
_REPEATED = frozenset(("GET", "BINGET", "LONG_BINGET"))  # of an entry that is in the list already


def check_key_list(path: Path) -> None:
    """Raise a UserError if there is no such file or it is of another kind."""
    if path.suffix not in _READERS:
        raise UserError(f"{path}: a list of keys ends in {', '.join(_READERS)}, not {path.suffix!r}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such list of keys")


def read_keys(path: Path) -> Iterator[str]:
    """Yield a list's keys, in its order; only JSON is held in memory.

    Args:
        path: `.txt`: one key a line. `.json`: a list of strings. `.pkl`: a pickled list of strings; its
            strings are picked out, nothing in it is loaded, let alone executed.

    Raises:
        UserError: The file cannot be read or holds something else.
    """
    check_key_list(path)
    try:
        yield from _READERS[path.suffix](path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the list of keys cannot be read: {error}") from error


def _read_text(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        yield from (line.strip() for line in file if line.strip())


def _read_json(path: Path) -> Iterator[str]:
    keys = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("it holds something else than a list of strings")
    yield from keys


def _read_pickle(path: Path) -> Iterator[str]:
    """Walk over the pickle's instructions; those of one list of strings are few."""
    lists = 0
    with path.open("rb") as file:
        for instruction, argument, _ in pickletools.genops(file):
            lists += instruction.name in _LISTS
            if instruction.name in _STRINGS and lists == 1:
                yield str(argument)
            elif lists > 1 or instruction.name not in _FRAME | _LISTS | _REPEATED:
                raise ValueError("refused, the pickle holds something else than a list of strings")


_READERS = {".txt": _read_text, ".json": _read_json, ".pkl": _read_pickle}
