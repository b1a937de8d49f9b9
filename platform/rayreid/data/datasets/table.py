"""Images listed in a table, CSV or Parquet: one's own labelled set, or a pool with its own names.

path,pid,camid,split,key
crops/17/0001.jpg,17,3,train,
"""

import hashlib
import reprlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileType

from rayreid.data.datasets.layout import Layout, refusal
from rayreid.data.datasets.place import Place, is_uri
from rayreid.data.datasets.table_file import TableFile, as_text, as_whole_numbers
from rayreid.data.datasets.written_path import MALFORMED, WrittenPaths
from rayreid.data.store.shards import Record
from rayreid.data.store.witness import SourceFile, file_at
from rayreid.errors import UserError
from rayreid.paths import expanded

COLUMNS = {"path": pa.string(), "pid": pa.int32(), "camid": pa.int16(), "split": pa.string(), "key": pa.string()}
SUFFIXES = (".csv", ".tsv", ".parquet")
SPLITS = ("train", "query", "gallery", "pool")
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80
"""Cuts the text of a wrong cell, which may be as long as the table, down to what a message can hold."""
MEANING = {
    "path": "a path",
    "pid": f"an identity: a whole number from -1 to {2**31 - 1}",
    "camid": f"a camera: a whole number from -1 to {2**15 - 1}",
    "split": f"a split: one of {', '.join(SPLITS)}",
    "key": "a key",
}


class Table(Layout):
    """The images that a table lists, in its order.

    The columns are `path` (below the images' folder: relative, or absolute; backslashes separate folders unless a file
    has them in its name), and, optionally, `pid` and `camid` (−1 or missing: unknown), `split` (missing: pool) and
    `key` (missing: the path). Other columns are not read. A row is ignored if its path leads out of the images' folder,
    or if its key is absolute or contains "..".

    Args:
        root: The table, `.csv`, `.tsv` or `.parquet`; a path or a URI.
        images: The folder to which the paths are relative, a path or a URI. A relative one is resolved against the
            table's folder, which is the default.

    Raises:
        UserError: The table or the folder is missing, or the table lacks a required column.
    """

    name = "table"

    def __init__(self, root: str | Path | None, images: str | None = None):
        super().__init__()
        if root is None:
            raise UserError("dataset table needs a root: the .csv, .tsv or .parquet file")
        self._table = Place(str(root))
        if self._table.kind() != FileType.File:
            raise UserError(f"dataset table: the file {self._table} does not exist")
        if PurePosixPath(self._table.path).suffix.lower() not in SUFFIXES:
            raise UserError(f"dataset table: {self._table} is no .csv, .tsv or .parquet file")
        self._images = Place(images) if images and is_uri(images) else self._table.folder(str(expanded(images or "")))
        if self._images.kind() != FileType.Directory:
            raise UserError(f"dataset table: the folder of the images, {self._images}, does not exist")
        file = self._open()
        if "path" not in file.columns:
            raise UserError(f"dataset table: {self._table} has no column path, only {', '.join(file.headings)}")

    def records(self) -> Iterator[Record]:
        """List the images, reading the table piece by piece.

        Raises:
            UserError: A cell has an invalid value (the message names its row and column), the table is damaged, or, at
                the end, there was no image.
        """
        self.ignored, self.left_out = [], {}
        return self.at_least_one(self._rows(), self._table)

    def read(self, record: Record) -> bytes:
        """Return the file's bytes; raise OSError if it is missing or cannot be read."""
        return self._images.read(record.path)

    def sources(self) -> Iterator[SourceFile]:
        """List the table, with its checksum, and, if they lie on this machine, the images that it names."""
        try:
            with self._table.filesystem.open_input_file(self._table.path) as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
                size = file.size()
        except (OSError, pa.ArrowException) as error:
            raise self._open().unreadable(error) from error
        yield SourceFile(PurePosixPath(self._table.path).name, size, 0, digest.hexdigest())
        if self._images.is_local:
            yield from (file_at(self.source_of(record), Path(record.path)) for record in self._rows())

    def source_of(self, record: Record) -> str:
        """Return the path of an image's file, relative to the folder of the images."""
        return record.path.removeprefix(f"{self._images.path}/")

    def _open(self) -> TableFile:
        return TableFile(self._table, tuple(COLUMNS), "dataset table")

    def _rows(self) -> Iterator[Record]:
        file, paths = self._open(), WrittenPaths(self._images)
        row = 0
        for batch in file.batches():
            for written, pid, camid, split, named in zip(*self._cells(batch, row + 1), strict=True):
                row += 1
                path, key = paths.relative(written), named.replace("\\", "/")
                if reason := paths.refusal(path):
                    self.ignore(f"row {row}" if not written or reason == MALFORMED else written, reason)
                elif reason := refusal(key or path):
                    self.ignore(written, f"key {reason}")
                else:
                    yield Record(normpath(key or path), pid, camid, split, f"{self._images.path}/{path}")

    def _cells(self, batch: pa.RecordBatch, first: int) -> list[list[Any]]:
        """Return a batch's values, in the order of `COLUMNS`, with missing ones replaced by their defaults.

        Args:
            batch: The columns that are present.
            first: Number of the batch's first row in the table, from 1.

        Raises:
            UserError: A cell has a value that its column does not allow.
        """
        values = []
        for name, default in zip(COLUMNS, ("", -1, -1, "pool", ""), strict=True):
            if name not in batch.schema.names:
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
                    f"{_SHOWN.repr(column[row].as_py())} is not {MEANING[name]}"
                )
        raise AssertionError("a column is wrong only if a cell is")


def _typed(name: str, column: pa.Array) -> pa.Array:
    """Return a column in its type, with missing cells as null; raise ValueError for a value that it does not allow."""
    if name in ("pid", "camid"):
        column = as_whole_numbers(column).cast(COLUMNS[name])
        if pc.any(pc.less(column, -1)).as_py():
            raise ValueError("less than -1")
        return column
    column = as_text(column)
    if name == "split":
        column = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        if pc.any(pc.invert(pc.is_in(column.drop_null(), pa.array(SPLITS)))).as_py():
            raise ValueError("no split")
    return column
