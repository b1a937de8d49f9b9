"""Lists of keys: text, JSON, or a pickled list such as LUPerson's `keys.pkl`, which is read without unpickling."""

import json
import pickletools
from array import array
from collections.abc import Iterator
from pathlib import Path

from rayreid.errors import UserError

_STRINGS = frozenset(
    ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING")
)
_LISTS = frozenset(("EMPTY_LIST", "LIST"))
_FRAME = frozenset(("PROTO", "FRAME", "MARK", "APPEND", "APPENDS", "STOP"))
_REMEMBER = frozenset(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"))  # these number the latest object, for a repetition
_REPEAT = frozenset(("GET", "BINGET", "LONG_BINGET"))
_NO_STRING = -1


def check_key_list(path: Path) -> None:
    """Raise a UserError if the file does not exist or is of another kind."""
    if path.suffix not in _READERS:
        raise UserError(f"{path}: a list of keys ends in {', '.join(_READERS)}, not {path.suffix!r}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such list of keys")


def read_keys(path: Path) -> Iterator[str]:
    """Yield a list's keys, in their order and with their repetitions.

    Only JSON is held in memory; a pickle takes eight bytes per key.

    Args:
        path: `.txt`: one key a line. `.json`: a list of strings. `.pkl`: a pickled list of strings. The strings are
            extracted from the pickle; nothing in it is loaded, let alone executed.

    Raises:
        UserError: The file cannot be read or contains something else.
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
    """Yield the strings of a pickle by walking over its instructions; a list of strings uses only a few kinds."""
    lists = 0
    latest = _NO_STRING  # where the latest object's instruction begins
    memo, first = array("q"), 0  # the same for the numbered objects; Python 2 counted them from 1
    with path.open("rb") as file, path.open("rb") as earlier:
        for instruction, argument, position in pickletools.genops(file):
            name = instruction.name
            lists += name in _LISTS
            if name in _STRINGS and lists == 1:
                latest = position or 0
                yield str(argument)
            elif name in _REMEMBER:
                if not memo:
                    first = argument or 0
                if argument not in (None, first + len(memo)):
                    raise ValueError("refused, the pickle numbers its strings out of order")
                memo.append(latest)
            elif name in _REPEAT and 0 <= (number := int(argument or 0) - first) < len(memo) and memo[number] >= 0:
                latest = memo[number]
                earlier.seek(latest)
                yield str(next(pickletools.genops(earlier))[1])
            elif lists > 1 or name not in _FRAME | _LISTS:
                raise ValueError("refused, the pickle holds something else than a list of strings")


_READERS = {".txt": _read_text, ".json": _read_json, ".pkl": _read_pickle}
