"""The manifest of a store, and its index, read back and checked: both may have been damaged since they were written."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayreid import forms
from rayreid.data.store.shards import INDEX_SCHEMA
from rayreid.errors import UserError, one_line
from rayreid.parquet import columns_of
from rayreid.state_files import remake

FORMAT = 2
MANIFEST = "manifest.json"
INDEX = "index.parquet"

ORIGIN = "origin"
"""Key of a manifest: the path or URI of the store whose shards this one reads; absent if it has its own."""

_SHARD = forms.record(
    {"file": forms.matching(r"shards/[0-9]{1,9}\.arrow"), "rows": forms.count, "checksum": forms.text}
)
_COUNTS = forms.mapping_of(forms.count)
_FORM = forms.record(
    {
        "format": forms.whole,
        "dataset": forms.text,
        "version": forms.text,
        "fingerprint": forms.text,
        "read": forms.count,
        "stored": forms.count,
        "rejected": _COUNTS,
        "counts": _COUNTS,
        "identities": _COUNTS,
        "cameras": forms.count,
        "shards": forms.list_of(_SHARD),
    },
    # What stores of earlier versions, or stores with shards of their own, do not have:
    {"left_out": _COUNTS, "index": forms.record({"bytes": forms.count, "crc32": forms.count}), ORIGIN: forms.text},
)
"""The form of a manifest; see `finish_store` for the meaning of its keys."""


_LATER = ("orientation", "crc32")
"""Columns that an index of an earlier version does not have."""


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
        return parsed_manifest(path.read_bytes(), str(path), remake(directory))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def parsed_manifest(content: bytes, place: str, remedy: str) -> dict[str, Any]:
    """Return a manifest from its text.

    Args:
        content: The text.
        place: Where it is, for messages.
        remedy: What to do if it is damaged.

    Raises:
        UserError: It is damaged, or has another format.
    """
    try:
        manifest: dict[str, Any] = forms.parse(content, _FORM)
    except ValueError as error:
        raise UserError(f"{place} is no image store's manifest ({one_line(error)}); {remedy}") from error
    if manifest["format"] not in range(1, FORMAT + 1):
        raise UserError(
            f"{place}: store format {manifest['format']}, this rayreid reads up to {FORMAT}; run the ingest again"
        )
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
            return parsed_index(source.read_buffer(), manifest, str(path), columns, remake(directory))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); run the ingest again") from error


def parsed_index(
    content: bytes | pa.Buffer, manifest: dict[str, Any], place: str, columns: Sequence[str], remedy: str
) -> pa.Table:
    """Return columns of an index from the bytes of its file, like `read_index`.

    Args:
        content: The bytes.
        manifest: The store's manifest.
        place: Where it is, for messages.
        columns: Names of columns.
        remedy: What to do if it is damaged.

    Raises:
        UserError: It is damaged.
    """
    expected = manifest.get("index")
    if expected is not None and index_facts(content) != expected:
        raise UserError(f"{place}: this index changed since the ingest; restore it from a copy, or {remedy}")
    kinds = {name: INDEX_SCHEMA.field(name).type.equals for name in columns}
    try:
        return columns_of(pa.BufferReader(content), kinds, optional=_LATER)
    except (ValueError, OSError) as error:  # among them Arrow's
        raise UserError(f"{place} cannot be read ({one_line(error)}); {remedy}") from error
