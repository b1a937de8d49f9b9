"""Tables of any origin: CSV files of several dialects, or Parquet. The same data frame gives the same cells."""

import csv
from collections.abc import Iterator, Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from rayreid.data.datasets.place import Place
from rayreid.errors import UserError, one_line

MISSING = frozenset(("", "na", "n/a", "#n/a", "#na", "<na>", "nan", "-nan", "null", "none", "nat"))
"""Spellings of a missing cell, in lower case: those that pandas, R and spreadsheets write."""
_SEPARATORS = ",;\t|"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_HEADING_BYTES = 2**20
_BATCH_ROWS = 16_384


class TableFile:
    """Some columns of a table, read piece by piece.

    A CSV file may be separated by commas, semicolons, tabs or bars, begin with a byte order mark (UTF-8 or UTF-16), and
    have capitals and spaces in its heading. If the heading has spaces around its names, so have the cells. No cell may
    contain a line break, read or not: a quote that is never closed would make one cell of all rows after it.

    Args:
        place: The file: Parquet if it ends so, in any case, and CSV otherwise.
        columns: Names of the columns to read, in lower case; which are required is up to the caller.
        title: What the table is, for messages.

    Raises:
        UserError: The file cannot be read, or has one of the columns twice.
    """

    def __init__(self, place: Place, columns: Sequence[str], title: str):
        self._place, self._title = place, title
        self._is_csv = not place.path.lower().endswith(".parquet")
        self._wanted = columns
        self.columns: list[str] = [name for name in columns if name in self._positions]
        """The columns that the table has, in the order in which they were asked for."""

    @property
    def headings(self) -> list[str]:
        """Return the names of all columns, as the table writes them."""
        return self._headings

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the columns, some thousand rows at a time.

        Cells of a CSV file are strings, unquoted. Those of a Parquet file have the type that the file gives them.

        Raises:
            UserError: The table is damaged.
        """
        try:
            with self._place.filesystem.open_input_file(self._place.path) as file:
                for batch in self._csv(file) if self._is_csv else self._parquet(file):
                    yield pa.record_batch([self._trimmed(column) for column in batch.columns], names=self.columns)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: Exception) -> UserError:
        """Return the error for a table that cannot be read."""
        return UserError(f"{self._title}: {self._place} cannot be read: {one_line(error, 'all')}")

    @cached_property
    def _headings(self) -> list[str]:
        try:
            with self._place.filesystem.open_input_file(self._place.path) as file:
                if self._is_csv:
                    return self._csv_headings(file.read(_HEADING_BYTES))
                return list(pa.parquet.read_schema(file).names)
        except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
            raise self.unreadable(error) from error

    def _csv_headings(self, start: bytes) -> list[str]:
        """Return the names in the first line, and decide on encoding, separator and spaces."""
        self._encoding = "utf-16" if start[:2] in _UTF16 else "utf-8-sig"
        line = next(iter(start.decode(self._encoding, "replace").splitlines()), "")
        if not line.strip():
            raise ValueError("it is empty" if not start else "its first line is empty; the columns' names belong there")
        self._separator = max(_SEPARATORS, key=lambda separator: self._known(line, separator))
        names = next(csv.reader([line], delimiter=self._separator, skipinitialspace=True))
        self._spaced = any(name != name.strip() for name in line.split(self._separator))
        if ends_within_quotes(line, self._separator):
            raise ValueError("a quote in its first line is not closed")
        return names

    def _known(self, line: str, separator: str) -> int:
        """Return how many of the wanted columns a heading has, if it is cut at this separator."""
        names = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
        return sum(name.strip().lower() in self._wanted for name in names)

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Map the wanted columns that are present to their positions."""
        names = [name.strip().lower() for name in self._headings]
        for name in self._wanted:
            if names.count(name) > 1:
                raise UserError(f"{self._title}: {self._place} has two columns {name}")
        return {name: names.index(name) for name in self._wanted if name in names}

    def _csv(self, file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
        names = [f"column {number}" for number in range(len(self._headings))]
        chosen = [names[self._positions[name]] for name in self.columns]
        first = 1
        for batch in pa.csv.open_csv(
            file,
            read_options=pa.csv.ReadOptions(
                column_names=names, skip_rows=1, encoding="utf8" if self._encoding == "utf-8-sig" else self._encoding
            ),
            parse_options=pa.csv.ParseOptions(delimiter=self._separator, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.string() if name in chosen else pa.binary() for name in names}
            ),
        ):
            self._refuse_line_breaks(batch, first)
            first += len(batch)
            yield batch.select(chosen)
        if ends_within_quotes(self._last_line(), self._separator):
            raise ValueError(f"row {first - 1} (the heading not counted): a quote is not closed; is the file cut off?")

    def _refuse_line_breaks(self, batch: pa.RecordBatch, first: int) -> None:
        """Raise a ValueError if a cell has a line break, as after a quote that is not closed.

        Args:
            batch: All columns.
            first: Number of the batch's first row in the table, from 1.
        """
        for heading, column in zip(self._headings, batch.columns, strict=True):
            broken = pc.or_(pc.match_substring(column, "\n"), pc.match_substring(column, "\r"))
            if (row := pc.index(broken, True).as_py()) >= 0:
                raise ValueError(
                    f"row {first + row} (the heading not counted), column {heading.strip()}: a cell has a line break; "
                    "close its quote, or take the line break out"
                )

    def _last_line(self) -> str:
        """Return the last line that is not empty, or its end if it is very long."""
        with self._place.filesystem.open_input_file(self._place.path) as file:
            encoding = self._encoding
            if encoding == "utf-16":
                encoding = "utf-16-le" if file.read(2) == _UTF16[0] else "utf-16-be"
            file.seek(max(0, file.size() - _HEADING_BYTES) // 2 * 2)
            lines = file.read().decode(encoding, "replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")

    def _parquet(self, file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
        chosen = [self._headings[self._positions[name]] for name in self.columns]
        for batch in pa.parquet.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=chosen):
            yield batch.select(chosen)

    def _trimmed(self, column: pa.Array) -> pa.Array:
        if self._is_csv and self._spaced:
            return pc.replace_substring_regex(pc.utf8_trim_whitespace(column), '^"(.*)"$', r"\1")
        return column


def ends_within_quotes(line: str, separator: str) -> bool:
    """Return whether a line of a CSV file ends in a cell whose quote is not closed."""
    return sum(1 for _ in csv.reader([f"{line}\n", "next\n"], delimiter=separator)) < 2


def as_text(column: pa.Array) -> pa.Array:
    """Return a column as strings, null where a cell is missing in any spelling.

    Numbers and truth values have the text that pandas writes for them into a CSV file: "1.0", "True".

    Raises:
        ValueError: The column's type has no text.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = pa.array(column.to_numpy(zero_copy_only=False).astype(str))  # a missing number becomes "nan"
    elif pa.types.is_boolean(column.type):
        column = pc.if_else(column, "True", "False")
    try:
        text = column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise ValueError(str(error)) from error
    spelling = pc.utf8_lower(pc.utf8_trim_whitespace(text))
    return pc.if_else(pc.is_in(spelling, pa.array(sorted(MISSING))), None, text)


def as_whole_numbers(column: pa.Array) -> pa.Array:
    """Return a column as int64, null where a cell is missing; 3, 3.0, "3", "0003" and " 3.0 " are the same.

    Raises:
        ValueError: A cell is no whole number.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_boolean(column.type):
        raise ValueError("true and false are no numbers")
    try:
        if pa.types.is_integer(column.type):
            return column.cast(pa.int64())
        if pa.types.is_floating(column.type):  # pandas writes a missing number as NaN
            return pc.if_else(pc.is_nan(column), None, column).cast(pa.int64())
        text = pc.utf8_trim_whitespace(as_text(column))
        try:
            return text.cast(pa.int64())
        except pa.ArrowInvalid:
            return text.cast(pa.float64()).cast(pa.int64())  # refuses fractions, and what is not finite
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise ValueError(str(error)) from error
