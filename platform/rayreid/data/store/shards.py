"""Writing of the image store's shards, in any order and by any number of workers.

A shard is complete when its index part `shards/NNNNN.parquet` exists, which is written last. An interrupted ingest
therefore resumes where it stopped, and the result of `rayreid.data.store.index` does not depend on which worker wrote
which shard when.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rayreid.data.images import BadImageError, decode, read_size
from rayreid.errors import UserError
from rayreid.files import checksum, replacing
from rayreid.parquet import write_table

BATCH_ROWS = 1024
BATCH_BYTES = 64 * 2**20  # bounds the memory of a writer, and keeps the 32-bit offsets of a batch far from overflowing
MAX_IMAGE_BYTES = 2**30
STORE_COMPRESSION = "zstd"  # compression of a store's Parquet files

SHARD_SCHEMA = pa.schema([("key", pa.string()), ("image", pa.binary())])
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("pid", pa.int32()),
        ("camid", pa.int16()),
        ("split", pa.string()),
        ("height", pa.int16()),
        ("width", pa.int16()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
    ]
)
PART_SCHEMA = INDEX_SCHEMA.append(pa.field("digest", pa.binary(16)))
REJECTED_SCHEMA = pa.schema([("key", pa.string()), ("path", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a dataset, before it is read.

    Attributes:
        key: The path in the original dataset; unique, posix, UTF-8.
        pid: Identity, −1 for unknown and junk.
        camid: Camera, −1 for unknown.
        split: "train", "query", "gallery" or "pool".
        path: The location from which the dataset's `read` takes the bytes.
    """

    key: str
    pid: int
    camid: int
    split: str
    path: str


class MissingImageError(OSError):
    """An error for a single image that is not where its record says, although the storage itself works."""


_OF_ONE_IMAGE = (MissingImageError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_ERRNO_OF_ONE_IMAGE = (errno.ENAMETOOLONG, errno.ELOOP)


def is_of_one_image(error: OSError) -> bool:
    """Return whether a read error concerns this image alone, and not the storage as a whole."""
    return isinstance(error, _OF_ONE_IMAGE) or error.errno in _ERRNO_OF_ONE_IMAGE


def shard_file(directory: Path, shard: int) -> Path:
    """Return the path of a shard's Arrow file."""
    return directory / "shards" / f"{shard:05d}.arrow"


def part_file(directory: Path, shard: int) -> Path:
    """Return the path of a shard's index part."""
    return shard_file(directory, shard).with_suffix(".parquet")


def rejected_file(directory: Path, shard: int) -> Path:
    """Return the path of the list of images that a shard's writer rejected."""
    return shard_file(directory, shard).with_suffix(".rejected.parquet")


def part_facts(part: Path) -> dict[str, Any]:
    """Return the facts about its shard that an index part records: `request`, `checksum`, `rows`."""
    return json.loads(pq.read_schema(part).metadata[b"rayreid"])


def _digest_of_request(records: Sequence[Record], verify: str) -> str:
    digest = hashlib.blake2b(verify.encode(), digest_size=16)
    for record in records:
        digest.update(f"\0{record.key}\0{record.pid}\0{record.camid}\0{record.split}\0{record.path}".encode())
    return digest.hexdigest()


class _ShardWriter:
    """The open Arrow file of a shard, to which images are added one by one, and the index rows of its images."""

    def __init__(self, path: Path, shard: int):
        self.shard = shard
        self.index: dict[str, list[Any]] = {name: [] for name in PART_SCHEMA.names}
        self._writer = pa.ipc.new_file(str(path), SHARD_SCHEMA)
        self._keys: list[str] = []
        self._images: list[bytes] = []
        self._bytes = 0

    def add(self, record: Record, data: bytes, height: int, width: int) -> None:
        if len(self._keys) == BATCH_ROWS or (self._keys and self._bytes + len(data) > BATCH_BYTES):
            self._flush()
        row = len(self.index["key"])
        digest = hashlib.blake2b(data, digest_size=16).digest()
        values = (record.key, record.pid, record.camid, record.split, height, width, self.shard, row, digest)
        for column, value in zip(self.index.values(), values, strict=True):
            column.append(value)
        self._keys.append(record.key)
        self._images.append(data)
        self._bytes += len(data)

    def _flush(self) -> None:
        if self._keys:
            self._writer.write_batch(pa.record_batch([self._keys, self._images], schema=SHARD_SCHEMA))
        self._keys, self._images, self._bytes = [], [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()


def write_shard(
    directory: Path,
    shard: int,
    records: Sequence[Record],
    read: Callable[[Record], bytes],
    verify: Literal["decode", "header"] = "decode",
) -> None:
    """Write one shard: `shards/NNNNN.arrow`, the list of rejected images and, last, its index part.

    A shard that is already complete for these records and this `verify` is left unchanged.

    Args:
        directory: The store's folder; made if it does not exist.
        shard: The shard's number; the numbers of a store start at 0 and have no gaps.
        records: Its images. Each of them ends up either in the shard or among the rejected images.
        read: Returns the encoded bytes of an image, which are stored unchanged. An OSError that concerns a single image
            (no such file, no permission, `MissingImageError`) rejects that image; any other is treated as a failure of
            the storage.
        verify: "decode" decodes every image fully; "header" reads only its header.

    Raises:
        UserError: The shard cannot be written (a full disk, a folder without write permission), or the storage from
            which the images are read does not answer. Nothing of the shard is kept then, so a later call reads it
            again.
    """
    try:
        _write_shard(directory, shard, records, read, verify)
    except OSError as error:
        # Errors while *reading* an image do not get here: they reject the image.
        raise UserError(
            f"{directory}: shard {shard} cannot be written ({error.strerror or error}); fix that and run the ingest "
            "again: finished shards are kept"
        ) from error


def _write_shard(
    directory: Path, shard: int, records: Sequence[Record], read: Callable[[Record], bytes], verify: str
) -> None:
    directory = Path(directory)
    arrow, part = shard_file(directory, shard), part_file(directory, shard)
    request = _digest_of_request(records, verify)
    if part.exists():
        if arrow.exists() and part_facts(part)["request"] == request:
            return
        part.unlink()  # it belongs to other records and must not vouch for the file written now
    arrow.parent.mkdir(parents=True, exist_ok=True)

    stored: set[str] = set()
    rejected: list[tuple[str, str, str]] = []
    with replacing(arrow) as temporary:
        writer = _ShardWriter(temporary, shard)
        for record in records:
            reason = "duplicate key" if record.key in stored else _store(writer, record, read, verify)
            if reason is None:
                stored.add(record.key)
            else:
                rejected.append((record.key, record.path, reason))
        writer.close()

    write_table(rejected_file(directory, shard), rejected_table(rejected), STORE_COMPRESSION)
    facts = {"request": request, "checksum": checksum(arrow), "rows": len(stored)}
    schema = PART_SCHEMA.with_metadata({"rayreid": json.dumps(facts)})
    write_table(part, pa.table(writer.index, schema=schema), STORE_COMPRESSION)


def _store(writer: _ShardWriter, record: Record, read: Callable[[Record], bytes], verify: str) -> str | None:
    """Read, check and add one image; return the reason if it is rejected."""
    try:
        data = read(record)
    except OSError as error:
        if is_of_one_image(error):
            return "unreadable"
        raise UserError(
            f"{record.path}: the storage does not answer ({error.strerror or error}); once it does, run the ingest "
            "again: finished shards are kept"
        ) from error
    if len(data) > MAX_IMAGE_BYTES:
        return "unreadable"
    try:
        height, width = decode(data).shape[:2] if verify == "decode" else read_size(data)
    except BadImageError as error:
        return error.reason
    writer.add(record, data, height, width)
    return None


def rejected_table(rows: Sequence[tuple[str, str, str]]) -> pa.Table:
    """Return rows of (key, path, reason) as a table."""
    return pa.Table.from_pylist(
        [dict(zip(REJECTED_SCHEMA.names, row, strict=True)) for row in rows], schema=REJECTED_SCHEMA
    )
