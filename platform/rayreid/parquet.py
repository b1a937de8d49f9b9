"""Atomic writing of Parquet files, and reading them back."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayreid.files import replacing
from rayreid.state_files import AGAIN, reading

_COMPRESSION = "snappy"

Kind = Callable[[pa.DataType], bool]
"""A function that accepts some types of a column, such as `pa.types.is_string`."""


def write_table(path: Path, table: pa.Table, compression: str = _COMPRESSION) -> None:
    """Write a table as a Parquet file: readers see the old content or the new one."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression=compression)


def encode_table(table: pa.Table, compression: str = _COMPRESSION) -> bytes:
    """Return the bytes that `write_table` would write."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression)
    return sink.getvalue().to_pybytes()


def read_columns(
    path: Path,
    columns: Mapping[str, Kind],
    rows: int | None = None,
    remedy: str = AGAIN,
    optional: Collection[str] = (),
) -> pa.Table:
    """Return columns of a state file that `write_table` has written; none of them holds a null.

    Args:
        path: The Parquet file.
        columns: Which types each column may have.
        rows: Number of rows; None: any.
        remedy: What to do if the file is damaged.
        optional: Names of the columns that may be absent.

    Raises:
        DamagedFileError: The file is missing, or holds something else.
    """
    with reading(path, remedy):
        table = columns_of(path, columns, optional)
        if rows is not None and table.num_rows != rows:
            raise ValueError(f"{table.num_rows} rows, not {rows}")
        return table


def columns_of(source: Path | pa.NativeFile, columns: Mapping[str, Kind], optional: Collection[str] = ()) -> pa.Table:
    """Return columns of a Parquet file, or of its bytes; see `read_columns`.

    Raises:
        ValueError: A column is missing, has another type, a null or a text that is no UTF-8, or Arrow cannot read the
            bytes.
        OSError: The file cannot be read, or Arrow cannot read the bytes.
    """
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        found = [name for name in columns if name in schema.names or name not in optional]
        for name in found:
            if schema.names.count(name) != 1:
                raise ValueError(f"there is not one column {name}")
            if not columns[name](schema.field(name).type):
                raise ValueError(f"the column {name} is of type {schema.field(name).type}")
        table = file.read(found)
    for name in found:
        if table[name].null_count:
            raise ValueError(f"the column {name} has gaps")
        table[name].validate(full=True)  # else a text that is no UTF-8 would be noticed by whoever reads it
    return table
