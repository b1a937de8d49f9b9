"""Names and options of backbones that a user writes, refused with the nearest valid one."""

import difflib
from collections.abc import Iterable

from rayreid.errors import UserError


def check_options(options: Iterable[str], known: Iterable[str], name: str) -> None:
    """Raise a UserError if an option is not one of those that the backbone of this name has."""
    for option in options:
        check_name(option, known, f"option of backbone {name}")


def check_name(value: str, known: Iterable[str], what: str) -> None:
    """Raise a UserError if a value is not one of those known."""
    known = list(known)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
    raise UserError(f"unknown {what} {value!r}; {hint}")
