"""The witness of an image store: the files from which it was read, with their sizes and times.

`witness.parquet` lies beside the index. It tells a later command, without reading an image, that nothing changed.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rayreid import forms
from rayreid.data.store.shards import STORE_COMPRESSION
from rayreid.files import replacing

_CHUNK = 65_536
_SCHEMA = pa.schema([("name", pa.string()), ("size", pa.int64()), ("modified", pa.int64()), ("checksum", pa.string())])
_FACTS = forms.record({"digest": forms.text, "place": forms.text})
_ABSENT = -1


class SourceFile(NamedTuple):
    """A file from which a dataset is read.

    Attributes:
        name: The name, relative to the dataset's root.
        size: Size in bytes; −1 if the file cannot be examined (a broken link).
        modified: Time of its last change, in nanoseconds since 1970; 0 if unknown.
        checksum: Checksum of a file that is small and important, such as a table; else "".
    """

    name: str
    size: int
    modified: int
    checksum: str = ""


def file_at(name: str, place: "Path | os.DirEntry[str]") -> SourceFile:
    """Return a file of this machine under the name by which its dataset knows it."""
    try:
        status = place.stat()
    except OSError:
        return SourceFile(name, _ABSENT, 0)
    return SourceFile(name, status.st_size, status.st_mtime_ns)


def witness_file(directory: Path) -> Path:
    """Return the path of a store's witness."""
    return directory / "witness.parquet"


def digest_of_files(files: Iterable[SourceFile]) -> str:
    """Return a hash of names, sizes, times and checksums, holding a part of the files in memory at a time."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(files):
        digest.update(_text(part))
    return digest.hexdigest()


def write_witness(directory: Path, files: Iterable[SourceFile], place: str, expected: str | None = None) -> None:
    """Write a store's witness.

    Args:
        directory: The store's folder.
        files: The files from which the store is read, listed before any of them is read.
        place: Where these files are, for messages.
        expected: Their digest as they were compared; if they have changed since, nothing is written.
    """
    with contextlib.suppress(_ChangedMeanwhileError):
        _write(directory, files, place, expected)


class _ChangedMeanwhileError(Exception):
    """An error for files that are not those that were compared."""


def _write(directory: Path, files: Iterable[SourceFile], place: str, expected: str | None) -> None:
    digest = hashlib.blake2b(digest_size=16)
    with (
        replacing(witness_file(directory)) as temporary,
        pq.ParquetWriter(temporary, _SCHEMA, compression=STORE_COMPRESSION) as writer,
    ):
        for part in _parts(files):
            digest.update(_text(part))
            writer.write_batch(pa.record_batch([list(column) for column in zip(*part, strict=True)], schema=_SCHEMA))
        if expected not in (None, digest.hexdigest()):
            raise _ChangedMeanwhileError
        writer.add_key_value_metadata({"rayreid": json.dumps({"digest": digest.hexdigest(), "place": place})})


def _parts(files: Iterable[SourceFile]) -> Iterator[list[SourceFile]]:
    remaining = iter(files)
    while part := list(islice(remaining, _CHUNK)):
        yield part


def _text(files: list[SourceFile]) -> bytes:
    return "".join([f"{name}\0{size}\0{time}\0{checksum}\n" for name, size, time, checksum in files]).encode()


class Witness:
    """A store's witness, of which only the digest is in memory.

    Args:
        directory: The store's folder.

    Attributes:
        digest: Hash of the files; "" if the store has no witness that can be read.
        place: Where the files were; "" if the store has no witness that can be read.
    """

    def __init__(self, directory: Path):
        self._path = witness_file(directory)
        facts = {"digest": "", "place": ""}
        with contextlib.suppress(OSError, pa.ArrowException, KeyError, TypeError, ValueError):  # or damaged
            facts = forms.parse(pq.read_metadata(self._path).metadata[b"rayreid"], _FACTS)
        self.digest: str = facts["digest"]
        self.place: str = facts["place"]

    def files(self) -> Iterator[SourceFile]:
        """Yield the files, in the order in which the dataset listed them, up to the first that cannot be read."""
        if not self.digest:
            return
        with contextlib.suppress(OSError, pa.ArrowException, TypeError), pq.ParquetFile(self._path) as file:
            if file.schema_arrow.names != _SCHEMA.names:
                return
            for batch in file.iter_batches(_CHUNK):
                yield from map(SourceFile._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))
