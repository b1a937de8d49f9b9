"""CSV files for people and their spreadsheets."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters of a cell that spreadsheets take for a formula, and would compute."""


def csv_of(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    """Return rows as CSV; text that a spreadsheet would take for a formula begins with an apostrophe.

    Args:
        columns: Names of the columns, in order.
        rows: Values by column; a missing one is empty.
        header: Whether the first line names the columns.
    """
    sink = io.StringIO()
    writer = csv.DictWriter(sink, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return sink.getvalue()


def cell(value: Any) -> Any:
    """Return what stands in a cell for a value: numbers, and texts that are numbers, are left as they are."""
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
