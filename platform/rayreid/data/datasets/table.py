"""Images listed in a table, CSV or Parquet: one's own labelled set, or a pool with its own names.

path,pid,camid,split,key
crops/17/0001.jpg,17,3,train,
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from pyarrow.fs import FileType

from rayreid.data.datasets.layout import Layout, refusal
from rayreid.data.datasets.place import Place, is_uri
from rayreid.data.store.shards import Record
from rayreid.errors import UserError, one_line

COLUMNS = {"path": pa.string(), "pid": pa.int32(), "camid": pa.int16(), "split": pa.string(), "key": pa.string()}
SPLITS = ("train", "query", "gallery", "pool")
MEANING = {
    "path": "a path",
    "pid": f"an identity: a whole number from -1 to {2**31 - 1}",
    "camid": f"a camera: a whole number from -1 to {2**15 - 1}",
    "split": f"a split: one of {', '.join(SPLITS)}",
    "key": "a key",
}
_BATCH_ROWS = 16_384
_FOLDERS = 65_536  # number of folders remembered at a time


class Table(Layout):
    """The images that a table lists, in its order.

    The columns are `path` (relative to the images' folder, posix), and, optionally, `pid` and `camid` (−1 or empty:
    unknown), `split` (empty: pool) and `key` (empty: the path). Other columns are not read. A row is ignored if its
    path leads out of the images' folder, or if its key is absolute or contains "..".

    Args:
        root: The table, `.csv` or `.parquet`; a path or a URI.
        images: The folder to which the paths are relative, a path or a URI. A relative one is resolved against the
            table's folder, which is the default.

    Raises:
        UserError: The table or the folder is missing, or the table lacks a required column.
    """

    name = "table"

    def __init__(self, root: str | Path | None, images: str | None = None):
        super().__init__()
        if root is None:
            raise UserError("dataset table needs a root: the .csv or .parquet file")
        self._table = Place(str(root))
        if self._table.kind() != FileType.File:
            raise UserError(f"dataset table: the file {self._table} does not exist")
        self._images = (
            Place(images) if images and is_uri(images) else self._table.folder(str(Path(images or "").expanduser()))
        )
        if self._images.kind() != FileType.Directory:
            raise UserError(f"dataset table: the folder of the images, {self._images}, does not exist")
        self._present = self._columns()

    def records(self) -> Iterator[Record]:
        """List the images, reading the table piece by piece.

        Raises:
            UserError: A cell has an invalid value (the message names its row and column), the table is damaged, or, at
                the end, there was no image.
        """
        self.ignored = []
        return self.at_least_one(self._rows(), self._table)

    def read(self, record: Record) -> bytes:
        """Return the file's bytes; raise OSError if it is missing or cannot be read."""
        return self._images.read(record.path)

    def _columns(self) -> list[str]:
        """Return the columns in `COLUMNS` that the table has."""
        suffix = PurePosixPath(self._table.path).suffix
        if suffix not in (".csv", ".parquet"):
            raise UserError(f"dataset table: {self._table} is no .csv or .parquet file")
        self._is_csv = suffix == ".csv"
        try:
            with self._table.filesystem.open_input_file(self._table.path) as file:
                names = pa.csv.open_csv(file).schema.names if self._is_csv else pa.parquet.read_schema(file).names
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error
        if "path" not in names:
            raise UserError(f"dataset table: {self._table} has no column path, only {', '.join(names)}")
        for name in COLUMNS:
            if names.count(name) > 1:
                raise UserError(f"dataset table: {self._table} has two columns {name}")
        return [name for name in COLUMNS if name in names]

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with self._table.filesystem.open_input_file(self._table.path) as file:
            if self._is_csv:
                options = pa.csv.ConvertOptions(
                    include_columns=self._present, column_types=dict.fromkeys(self._present, pa.string())
                )
                yield from pa.csv.open_csv(file, convert_options=options)
            else:
                yield from pa.parquet.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=self._present)

    def _rows(self) -> Iterator[Record]:
        fence = _Fence(self._images.path) if self._images.is_local else None
        row = 0
        try:
            for batch in self._batches():
                for path, pid, camid, split, key in zip(*self._cells(batch, row + 1), strict=True):
                    row += 1
                    if reason := refusal(path) or (fence and fence.refusal(path)):
                        self.ignore(path or f"row {row}", reason)
                    elif reason := refusal(key or path):
                        self.ignore(path, f"key {reason}")
                    else:
                        yield Record(normpath(key or path), pid, camid, split, f"{self._images.path}/{path}")
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _cells(self, batch: pa.RecordBatch, first: int) -> list[list[Any]]:
        """Return a batch's values, in the order of `COLUMNS`, with empty ones replaced by their defaults.

        Args:
            batch: The columns that are present.
            first: Number of the batch's first row in the table, from 1.

        Raises:
            UserError: A cell has a value that its column does not allow.
        """
        values = []
        for name, default in zip(COLUMNS, ("", -1, -1, "pool", ""), strict=True):
            if name not in self._present:
                values.append([default] * len(batch))
                continue
            try:
                values.append(_typed(name, batch.column(name)).fill_null(default).to_pylist())
            except ValueError:
                raise self._wrong_cell(name, batch.column(name), first) from None
        return values

    def _wrong_cell(self, name: str, column: pa.Array, first: int) -> UserError:
        """Return the error for a column with a value that it does not allow."""
        for row in range(len(column)):
            try:
                _typed(name, column.slice(row, 1))
            except ValueError:
                return UserError(
                    f"dataset table: {self._table}: row {first + row} (the heading not counted), column {name}: "
                    f"{column[row].as_py()!r} is not {MEANING[name]}"
                )
        raise AssertionError("a column is wrong only if a cell is")

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"dataset table: {self._table} cannot be read: {one_line(error, 'all')}")


def _typed(name: str, column: pa.Array) -> pa.Array:
    """Return a column in its type, with empty cells as null; raise ValueError for a value that it does not allow."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)  # pandas writes a missing number as NaN
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.if_else(pc.equal(column, ""), None, column)
    try:
        column = column.cast(COLUMNS[name])
    except pa.ArrowNotImplementedError as error:
        raise ValueError(str(error)) from error
    if name in ("pid", "camid") and pc.any(pc.less(column, -1)).as_py():
        raise ValueError("less than -1")
    if name == "split" and pc.any(pc.invert(pc.is_in(column.drop_null(), pa.array(SPLITS)))).as_py():
        raise ValueError("no split")
    return column


class _Fence:
    """A check whether a path leaves a folder of this machine through a link."""

    def __init__(self, root: str):
        self._root = root
        self._real = os.path.realpath(root)
        self._leaves = lru_cache(_FOLDERS)(self._leads_out)

    def refusal(self, path: str) -> str | None:
        """Return the reason to refuse the file at this relative path; None if it may be read."""
        out = self._leaves(os.path.dirname(path))  # noqa: PTH120  (Path is slow for millions)
        if not out and os.path.islink(f"{self._root}/{path}"):  # noqa: PTH114
            out = self._leads_out(path)
        return "outside its root" if out else None

    def _leads_out(self, path: str) -> bool:
        real = os.path.realpath(f"{self._root}/{path}")
        return os.path.commonpath((self._real, real)) != self._real
