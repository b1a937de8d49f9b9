"""The images that a selection keeps, in order of priority, as a table or a list that others can read."""

import csv
import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayreid.errors import UserError
from rayreid.selection.filelist import Keys
from rayreid.selection.strategies import Priority, cut


def in_order(keys: Keys, priority: Priority, size: int) -> npt.NDArray[np.int64]:
    """Return the index rows that a cut keeps, int64, highest priority first; ties go to the smaller key.

    Args:
        keys: The store's keys, N of them, unique and ascending.
        priority: Priorities float64 (N,); NaN: never selected.
        size: Number of images to keep.
    """
    rows = cut(keys, priority, size)
    return rows[np.argsort(-priority[rows], kind="stable")]


def kept_table(
    keys: npt.NDArray[np.object_],
    priority: Priority,
    rows: npt.NDArray[np.int64],
    origins: npt.NDArray[np.str_] | None = None,
    path_of: Callable[[str], str | None] = lambda key: None,
) -> pa.Table:
    """Return a table of kept images, a row per image.

    Args:
        keys: The store's keys (N,).
        priority: Priorities float64 (N,).
        rows: Index rows of the kept images (n,), highest priority first.
        origins: Origin of each image of the store (N,), if known.
        path_of: Function that returns the path of an image's file by its key; None: not known.

    Returns:
        Columns `key`, `priority`, `rank` (from 1), and, where known, `origin` and `path`.
    """
    chosen = keys[rows].tolist()
    columns = {
        "key": pa.array(chosen, pa.string()),
        "priority": pa.array(priority[rows], pa.float64()),
        "rank": pa.array(np.arange(1, len(rows) + 1)),
    }
    if origins is not None:
        columns["origin"] = pa.array(origins[rows].tolist(), pa.string())
    paths = pa.array(map(path_of, chosen), pa.string())
    if paths.null_count < len(paths):
        columns["path"] = paths
    return pa.table(columns)


def as_csv(table: pa.Table) -> str:
    """Return a table of kept images as CSV, with a heading; `select.strategy: list` reads it.

    Keys are written as they are, even where a spreadsheet would take one for a formula: a key must stay one.

    Raises:
        UserError: A key cannot be read back from a text.
    """
    _check_lines(table)
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches():
        writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    return sink.getvalue()


def as_lines(table: pa.Table) -> str:
    """Return the keys of kept images, one per line; `select.strategy: list` reads them.

    Raises:
        UserError: A key cannot be read back from a text.
    """
    _check_lines(table)
    return "".join(f"{key}\n" for key in table["key"].to_pylist())


def _check_lines(table: pa.Table) -> None:
    """Refuse keys that a reader of lines would change: with spaces at an end, or with a line break."""
    for key in table["key"].to_pylist():
        if key != key.strip() or len(key.splitlines()) != 1:
            raise UserError(f"the key {key!r} would not survive as a line of text: export as parquet or webdataset")
