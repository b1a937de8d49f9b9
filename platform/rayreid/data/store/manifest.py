"""The manifest of a store, and its index, read back and checked: both may have been damaged since they were written."""

import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayreid.errors import UserError, one_line

FORMAT = 2
MANIFEST = "manifest.json"
INDEX = "index.parquet"

ORIGIN = "origin"
"""Key of a manifest: the path or URI of the store whose shards this one reads; absent if it has its own."""

_SHARD = re.compile(r"shards/[0-9]+\.arrow")


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(type(count) is int for count in value.values())


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) is int and value >= 0


def _shards(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and _shard(one) for one in value)


def _shard(value: dict[str, Any]) -> bool:
    file = value.get("file")
    named = isinstance(file, str) and _SHARD.fullmatch(file) is not None
    return named and _number(value.get("rows")) and _text(value.get("checksum"))


def _index(value: Any) -> bool:
    return isinstance(value, dict) and _number(value.get("bytes")) and _number(value.get("crc32"))


_REQUIRED: dict[str, Callable[[Any], bool]] = {
    "dataset": _text,
    "version": _text,
    "fingerprint": _text,
    "read": _number,
    "stored": _number,
    "rejected": _counts,
    "counts": _counts,
    "identities": _counts,
    "cameras": _number,
    "shards": _shards,
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {"left_out": _counts, "index": _index, ORIGIN: _text}
"""What stores of earlier versions, or stores with shards of their own, do not have."""


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a store in a folder.

    Raises:
        UserError: There is no store, or it is incomplete, or its manifest is damaged or has another format.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such folder; ingest the dataset first")
    if not path.is_file():
        if (directory / "shards").is_dir():
            raise UserError(f"{path} is missing: the ingest is not finished; run it again to resume it")
        raise UserError(f"{path} is missing: this folder is no image store; ingest the dataset first")
    try:
        return parsed_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def parsed_manifest(content: bytes, place: str) -> dict[str, Any]:
    """Return a manifest from its text.

    Args:
        content: The text.
        place: Where it is, for messages.

    Raises:
        UserError: It is damaged, or has another format.
    """
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is no image store's manifest ({one_line(error)}); ingest again") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise UserError(f"{place} is no image store's manifest (it states no format); ingest again")
    if type(manifest["format"]) is not int or manifest["format"] not in range(1, FORMAT + 1):
        raise UserError(
            f"{place}: store format {manifest['format']}, this rayreid reads up to {FORMAT}; run the ingest again"
        )
    wrong = [name for name, fits in _REQUIRED.items() if not (name in manifest and fits(manifest[name]))]
    wrong += [name for name, fits in _OPTIONAL.items() if name in manifest and not fits(manifest[name])]
    if wrong:
        raise UserError(f"{place} is damaged ({', '.join(wrong)}); delete it, and run the ingest again")
    return manifest


def index_facts(content: bytes | memoryview | pa.Buffer) -> dict[str, int]:
    """Return what the manifest records of the index file: its size in bytes and its CRC-32 (see `image_checksum`)."""
    return {"bytes": len(memoryview(content)), "crc32": zlib.crc32(content)}


def read_index(directory: Path, manifest: dict[str, Any], columns: Sequence[str]) -> pa.Table:
    """Return those of some columns of the index that it has; one of an earlier version has fewer.

    Its checksum is compared first, unless the store is of an earlier version, whose manifest records none.

    Raises:
        UserError: The index cannot be read, or changed since the ingest.
    """
    path = directory / INDEX
    try:
        with pa.memory_map(str(path)) as source:
            return parsed_index(source.read_buffer(), manifest, str(path), columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); run the ingest again") from error


def parsed_index(content: bytes | pa.Buffer, manifest: dict[str, Any], place: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of an index from the bytes of its file, like `read_index`.

    Args:
        content: The bytes.
        manifest: The store's manifest.
        place: Where it is, for messages.
        columns: Names of columns.

    Raises:
        UserError: It is damaged.
    """
    expected = manifest.get("index")
    if expected is not None and index_facts(content) != expected:
        raise UserError(
            f"{place}: this index changed since the ingest; restore it from a copy, or delete it: the next run makes "
            "it again"
        )
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            present = set(file.schema_arrow.names)
            return file.read([name for name in columns if name in present])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place} cannot be read ({one_line(error)}); run the ingest again") from error
