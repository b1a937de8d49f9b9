"""Distribution of a dataset's listing over shards while the dataset is still being listed.

A `Record` takes some 400 bytes as a Python object, so a list of millions of them would need more memory than the rest
of an ingest. Records are therefore converted to Arrow rows at once, and leave the listing process as soon as a shard is
full.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa

from rayreid.data.store.shards import Record, write_shard

SHARD_IMAGES = 20_000  # about 256 MiB of person crops
LEAST_IMAGES = 512  # a smaller shard is not worth its overhead
PARTS = 8  # number of shards of a small set, if `LEAST_IMAGES` allows it, to keep several workers busy
_CHUNK = 4096

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("pid", pa.int32()),
        ("camid", pa.int16()),
        ("split", pa.string()),
        ("path", pa.string()),
    ]
)


@dataclass(frozen=True)
class Part:
    """The listing of one shard, ready to be sent to its writer.

    Attributes:
        images: Number of records.
        encoded: The records, encoded as an Arrow IPC stream.
    """

    images: int
    encoded: bytes

    def records(self) -> list[Record]:
        """Return the records, in the order in which the dataset listed them."""
        table = pa.ipc.open_stream(self.encoded).read_all()
        return [Record(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def deal(records: Iterable[Record]) -> Iterator[Part]:
    """Yield the records in parts, in order.

    A part has `SHARD_IMAGES` records, or fewer if there are fewer than `PARTS` parts of that size. At most `PARTS` ×
    `SHARD_IMAGES` records are in memory, as Arrow rows. The parts depend on nothing but the records.

    Args:
        records: The records of a dataset; may be a generator of any length.
    """
    chunks = listed_rows(records)
    held = _take(chunks, PARTS * SHARD_IMAGES + 1)
    if held.num_rows <= PARTS * SHARD_IMAGES:
        yield from _cut(held, min(max(-(-held.num_rows // PARTS), LEAST_IMAGES), SHARD_IMAGES))
        return
    while held.num_rows:
        whole = held.num_rows // SHARD_IMAGES * SHARD_IMAGES
        yield from _cut(held.slice(0, whole), SHARD_IMAGES)
        more = _take(chunks, SHARD_IMAGES)
        if not more.num_rows:
            yield from _cut(held.slice(whole), SHARD_IMAGES)
            return
        held = pa.concat_tables([held.slice(whole), more])


def write_part(
    directory: Path, shard: int, part: Part, read: Callable[[Record], bytes], verify: Literal["decode", "header"]
) -> None:
    """Run `shards.write_shard` in the process that received the listing (a worker)."""
    write_shard(directory, shard, part.records(), read, verify)


def listed_rows(records: Iterable[Record]) -> Iterator[pa.RecordBatch]:
    """Yield records as Arrow rows `key pid camid split path`, some thousands at a time."""
    records = iter(records)
    while rows := [(r.key, r.pid, r.camid, r.split, r.path) for r in islice(records, _CHUNK)]:
        yield pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=_SCHEMA)


def _take(chunks: Iterator[pa.RecordBatch], rows: int) -> pa.Table:
    """Return the next chunks until they have at least `rows` rows or there are no more."""
    taken: list[pa.RecordBatch] = []
    count = 0
    while count < rows and (chunk := next(chunks, None)) is not None:
        taken.append(chunk)
        count += chunk.num_rows
    return pa.Table.from_batches(taken, schema=_SCHEMA)


def _cut(table: pa.Table, rows: int) -> Iterator[Part]:
    for start in range(0, table.num_rows, rows):
        piece = table.slice(start, rows)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, _SCHEMA) as stream:
            stream.write_table(piece)
        yield Part(piece.num_rows, sink.getvalue().to_pybytes())
