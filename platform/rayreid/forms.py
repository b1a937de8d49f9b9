"""Forms of JSON values, as state files hold them: functions that say what is wrong with a value.

_NOTE = forms.record({"run": forms.text, "steps": forms.mapping_of(forms.whole)})
note = forms.parse(content, _NOTE)
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

Form = Callable[[Any], str | None]
"""A function that returns what is wrong with a parsed value; None if it has the form."""


def anything(value: Any) -> str | None:
    """Accept every value."""
    return None


def text(value: Any) -> str | None:
    """Accept a text."""
    return None if isinstance(value, str) else "not a text"


def boolean(value: Any) -> str | None:
    """Accept true or false."""
    return None if isinstance(value, bool) else "neither true nor false"


def whole(value: Any) -> str | None:
    """Accept a whole number of 64 bits."""
    return None if type(value) is int and -(2**63) <= value < 2**63 else "not a whole number"


def count(value: Any) -> str | None:
    """Accept a whole number from 0."""
    return whole(value) or ("below 0" if value < 0 else None)


def number(value: Any) -> str | None:
    """Accept a number, also NaN and infinity."""
    return None if isinstance(value, float) or whole(value) is None else "not a number"


def finite(value: Any) -> str | None:
    """Accept a finite number."""
    return number(value) or (None if math.isfinite(value) else "not finite")


def matching(pattern: str) -> Form:
    """Return the form of texts that a regular expression matches as a whole."""
    compiled = re.compile(pattern)
    return lambda value: text(value) or (None if compiled.fullmatch(value) else f"{value[:40]!r} is not allowed here")


def or_none(form: Form) -> Form:
    """Return a form that also accepts null."""
    return lambda value: None if value is None else form(value)


def list_of(form: Form) -> Form:
    """Return the form of lists of values."""

    def examine(value: Any) -> str | None:
        if not isinstance(value, list):
            return "not a list"
        return next((f"{place}: {fault}" for place, one in enumerate(value) if (fault := form(one))), None)

    return examine


def mapping_of(form: Form) -> Form:
    """Return the form of objects with any keys."""

    def examine(value: Any) -> str | None:
        if not isinstance(value, dict):
            return "not an object"
        return next((f"{key[:40]!r}: {fault}" for key, one in value.items() if (fault := form(one))), None)

    return examine


def record(fields: dict[str, Form], optional: dict[str, Form] | None = None, others: Form = anything) -> Form:
    """Return the form of objects with certain keys.

    Args:
        fields: Forms of the values under keys that must be there.
        optional: Forms of the values under keys that may be absent.
        others: Form of the values under all other keys.
    """
    known = {**fields, **(optional or {})}

    def examine(value: Any) -> str | None:
        if not isinstance(value, dict):
            return "not an object"
        for key in fields:
            if key not in value:
                return f"{key!r} is missing"
        return mapping_of(anything)(value) or next(
            (f"{key[:40]!r}: {fault}" for key, one in value.items() if (fault := known.get(key, others)(one))), None
        )

    return examine


def parse(content: bytes | str, form: Form) -> Any:
    """Return a JSON value of a form.

    Raises:
        ValueError: It is no JSON, or of another form.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    fault = form(value)
    if fault is not None:
        raise ValueError(fault)
    return value
