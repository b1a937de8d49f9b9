"""Atomic writing of Parquet files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayreid.files import replacing

_COMPRESSION = "snappy"


def write_table(path: Path, table: pa.Table, compression: str = _COMPRESSION) -> None:
    """Write a table as a Parquet file: readers see the old content or the new one."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression=compression)


def encode_table(table: pa.Table, compression: str = _COMPRESSION) -> bytes:
    """Return the bytes that `write_table` would write."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression)
    return sink.getvalue().to_pybytes()
