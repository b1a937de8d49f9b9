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
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rayreid import forms
from rayreid.data.images import BadImageError, Header, examine
from rayreid.data.store.image_checksum import checksum_of_image
from rayreid.errors import UserError
from rayreid.files import checksum, replacing
from rayreid.parquet import read_columns, write_table
from rayreid.state_files import if_whole, reading

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
        ("orientation", pa.int8()),
        ("digest", pa.binary(16)),
        ("crc32", pa.uint32()),
    ]
)
REJECTED_SCHEMA = pa.schema([("key", pa.string()), ("path", pa.string()), ("reason", pa.string())])

INGEST_AGAIN = "run the ingest again to resume it"
WRITTEN_AGAIN = "its shard is written again"
_FACTS = forms.record({"request": forms.text, "checksum": forms.text, "rows": forms.count})


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
    """An error for a single image that is not where its record says, although the storage itself works.

    Args:
        message: The whole message.
        reason: What is wrong, in the words by which rejected images are counted.
    """

    def __init__(self, message: str, reason: str = "missing"):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return MissingImageError, (str(self), self.reason)


UNREADABLE = "unreadable: "
"""Beginning of the reasons of images whose bytes could not be read; they say nothing about the bytes."""

_REASONS = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.EISDIR: "a folder",
    errno.EACCES: "not permitted",
    errno.EPERM: "not permitted",
    errno.ENAMETOOLONG: "name too long",
    errno.ELOOP: "links in a circle",
}
_REASONS_OF_CLASSES = {
    FileNotFoundError: "missing",
    NotADirectoryError: "missing",
    IsADirectoryError: "a folder",
    PermissionError: "not permitted",
}


def reason_of(error: OSError) -> str | None:
    """Return why a single image cannot be read: "unreadable: missing", "unreadable: a folder", …

    None if the error concerns the storage as a whole and not this image alone.
    """
    if isinstance(error, MissingImageError):
        return f"{UNREADABLE}{error.reason}"
    reason = _REASONS.get(error.errno or 0) or _REASONS_OF_CLASSES.get(type(error))
    return reason and f"{UNREADABLE}{reason}"


def digest_of_image(data: bytes | memoryview) -> bytes:
    """Return the hash by which images with the same bytes are found, 16 bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


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
    """Return the facts about its shard that an index part records: `request`, `checksum`, `rows`.

    Raises:
        DamagedFileError: The part is damaged.
    """
    with reading(part, INGEST_AGAIN):
        metadata = pq.read_metadata(part)
        facts: dict[str, Any] = forms.parse((metadata.metadata or {}).get(b"rayreid", b""), _FACTS)
        if metadata.num_rows != facts["rows"] or not metadata.schema.to_arrow_schema().equals(INDEX_SCHEMA):
            raise ValueError("it does not have the rows that it says")
        return facts


def read_part(path: Path, schema: pa.Schema) -> pa.Table:
    """Return a table that the writer of a shard left beside it.

    Raises:
        DamagedFileError: It is missing or damaged.
    """
    kinds = {name: schema.field(name).type.equals for name in schema.names}
    return read_columns(path, kinds, remedy=INGEST_AGAIN)


def _digest_of_request(records: Sequence[Record], verify: str) -> str:
    digest = hashlib.blake2b(verify.encode(), digest_size=16)
    for record in records:
        digest.update(f"\0{record.key}\0{record.pid}\0{record.camid}\0{record.split}\0{record.path}".encode())
    return digest.hexdigest()


class _ShardWriter:
    """The open Arrow file of a shard, to which images are added one by one, and the index rows of its images."""

    def __init__(self, path: Path, shard: int):
        self.shard = shard
        self.index: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
        self._writer = pa.ipc.new_file(str(path), SHARD_SCHEMA)
        self._keys: list[str] = []
        self._images: list[bytes] = []
        self._bytes = 0

    def add(self, record: Record, data: bytes, header: Header) -> None:
        if len(self._keys) == BATCH_ROWS or (self._keys and self._bytes + len(data) > BATCH_BYTES):
            self._flush()
        row = len(self.index["key"])
        digest = digest_of_image(data)
        place = (header.height, header.width, self.shard, row, header.orientation)
        values = (record.key, record.pid, record.camid, record.split, *place, digest, checksum_of_image(data))
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
    list_of_rejected = rejected_file(directory, shard)
    facts = if_whole(part, partial(part_facts, part), WRITTEN_AGAIN)
    if facts is not None:
        known = if_whole(list_of_rejected, partial(read_part, list_of_rejected, REJECTED_SCHEMA), WRITTEN_AGAIN)
        if arrow.exists() and known is not None and facts["request"] == request:
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

    write_table(list_of_rejected, rejected_table(rejected), STORE_COMPRESSION)
    facts = {"request": request, "checksum": checksum(arrow), "rows": len(stored)}
    schema = INDEX_SCHEMA.with_metadata({"rayreid": json.dumps(facts)})
    write_table(part, pa.table(writer.index, schema=schema), STORE_COMPRESSION)


def _store(writer: _ShardWriter, record: Record, read: Callable[[Record], bytes], verify: str) -> str | None:
    """Read, check and add one image; return the reason if it is rejected."""
    data = read_or_reason(record, read)
    if isinstance(data, str):
        return data
    try:
        header = examine(data, verify == "decode")
    except BadImageError as error:
        return error.reason
    writer.add(record, data, header)
    return None


def read_or_reason(record: Record, read: Callable[[Record], bytes]) -> bytes | str:
    """Return the bytes of an image, or the reason why this image cannot be read.

    Raises:
        UserError: The storage does not answer.
    """
    try:
        data = read(record)
    except OSError as error:
        if (reason := reason_of(error)) is not None:
            return reason
        raise UserError(
            f"{record.path}: the storage does not answer ({error.strerror or error}); once it does, run the ingest "
            "again: finished shards are kept"
        ) from error
    return data if len(data) <= MAX_IMAGE_BYTES else "too large"


def rejected_table(rows: Sequence[tuple[str, str, str]]) -> pa.Table:
    """Return rows of (key, path, reason) as a table."""
    return pa.Table.from_pylist(
        [dict(zip(REJECTED_SCHEMA.names, row, strict=True)) for row in rows], schema=REJECTED_SCHEMA
    )
