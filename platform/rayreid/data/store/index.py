"""Joining the parts of an ingest into `index.parquet`, `rejected.parquet` and, last, `manifest.json`."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayreid.data.store.manifest import FORMAT, INDEX, MANIFEST, index_facts
from rayreid.data.store.shards import (
    INDEX_SCHEMA,
    REJECTED_SCHEMA,
    STORE_COMPRESSION,
    WRITTEN_AGAIN,
    part_facts,
    part_file,
    read_part,
    rejected_file,
    rejected_table,
    shard_file,
)
from rayreid.errors import UserError
from rayreid.files import remove_temporaries, write_atomically
from rayreid.parquet import encode_table, write_table
from rayreid.state_files import DamagedFileError, move_aside

_CHUNK = 65_536  # number of rows whose keys and digests are Python objects at one time


def finish_store(
    directory: Path,
    shards: int,
    dataset: str,
    version: str,
    ignored: Sequence[tuple[str, str]] = (),
    listed: int | None = None,
    left_out: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Join the parts of all shards, which completes the store.

    The index is sorted by key, so neither it nor the fingerprint depends on workers, time, interruptions or shard
    sizes. Of several images with the same key, the first (by shard and row) is kept and the others are rejected.

    Args:
        directory: The store's folder.
        shards: Number of shards of the store; shards 0 … shards − 1 must all be written.
        dataset: The dataset's name.
        version: The dataset's version, e.g. "V2" of MSMT17.
        ignored: Files for which the dataset itself yields no record, as (path, reason).
        listed: Number of records given to the shards; it is compared with the number that they contain.
        left_out: Number of files that the dataset did not take for images, by reason.

    Returns:
        The manifest: `format dataset version fingerprint read stored rejected{reason: n} left_out{reason: n}
            counts{split: n} identities{split: n, distinct pid ≥ 0} cameras (distinct camid ≥ 0)
            shards[{file, rows, checksum}] index{bytes, crc32}`. `read` = `stored` + the sum of `rejected`.

    Raises:
        UserError: A shard is not written, no image could be stored, or the store's folder cannot be written.
        RuntimeError: The shards do not account for all listed records.
    """
    directory = Path(directory)
    parts = [part_file(directory, shard) for shard in range(shards)]
    for part in parts:
        if not part.exists():
            raise UserError(f"{directory}: shard part {part.name} is not written; run the ingest again to resume it")

    rows, duplicates = _first_of_each_key(
        pa.concat_tables([_read_part(part, INDEX_SCHEMA) for part in parts] or [INDEX_SCHEMA.empty_table()])
    )
    rejected = pa.concat_tables(
        [
            *(_read_part(rejected_file(directory, shard), REJECTED_SCHEMA) for shard in range(shards)),
            rejected_table([(key, key, "duplicate key") for key in duplicates]),
            rejected_table([(path, path, reason) for path, reason in ignored]),
        ]
    ).sort_by([("key", "ascending"), ("reason", "ascending")])
    reasons = Counter(rejected["reason"].to_pylist())
    if rows.num_rows == 0:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none was given"
        raise UserError(f"{directory}: dataset {dataset} has no usable image ({why})")

    accounted = rows.num_rows + rejected.num_rows - len(ignored)
    if listed is not None and listed != accounted:
        raise RuntimeError(f"{directory}: {listed} images were listed, the shards account for {accounted}")

    manifest = {
        "format": FORMAT,
        "dataset": dataset,
        "version": version,
        "fingerprint": fingerprint_of(rows, dataset, version),
        "read": rows.num_rows + rejected.num_rows,
        "stored": rows.num_rows,
        "rejected": dict(sorted(reasons.items())),
        "left_out": dict(sorted((left_out or {}).items())),
        **_counts(rows),
        "shards": [
            {
                "file": shard_file(directory, shard).relative_to(directory).as_posix(),
                "rows": part_facts(part)["rows"],
                "checksum": part_facts(part)["checksum"],
            }
            for shard, part in enumerate(parts)
        ],
    }
    try:
        _write_joined(directory, rows, rejected, manifest)
    except OSError as error:
        raise UserError(
            f"{directory}: the index cannot be written ({error.strerror or error}); fix that and run the ingest "
            "again: finished shards are kept"
        ) from error
    return manifest


def _read_part(path: Path, schema: pa.Schema) -> pa.Table:
    """Return what the writer of a shard left beside it; if it is damaged, it is moved aside and must be made again.

    Raises:
        DamagedFileError: It is damaged.
    """
    try:
        return read_part(path, schema)
    except DamagedFileError as error:
        move_aside(path, error.why, WRITTEN_AGAIN)
        raise


def _write_joined(directory: Path, rows: pa.Table, rejected: pa.Table, manifest: dict[str, Any]) -> None:
    index = rows.select(INDEX_SCHEMA.names).replace_schema_metadata(None)
    content = encode_table(index, STORE_COMPRESSION)
    write_atomically(directory / INDEX, content)
    write_table(directory / "rejected.parquet", rejected, STORE_COMPRESSION)
    manifest["index"] = index_facts(content)
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    clear_strays(directory)


def clear_strays(directory: Path) -> None:
    """Remove the unfinished files of writers that were killed. Call it only if no other process writes to the store."""
    remove_temporaries(directory / "shards")


def remove_shards(directory: Path, only_with_rejected: bool = False) -> None:
    """Remove the parts of an unfinished store, so that their images are read again.

    Args:
        directory: The store's folder. No other process writes to it.
        only_with_rejected: Whether to keep the shards of which no image was rejected.
    """
    for rejected in (directory / "shards").glob("*.rejected.parquet"):
        if not only_with_rejected or not _is_empty(rejected):
            shard = int(rejected.name.partition(".")[0])
            part_file(directory, shard).unlink(missing_ok=True)  # first: it vouches for the others
            shard_file(directory, shard).unlink(missing_ok=True)
            rejected.unlink()


def _is_empty(table: Path) -> bool:
    """Return whether a file is a table without a row; a damaged one is not."""
    try:
        return pq.read_metadata(table).num_rows == 0
    except (OSError, pa.ArrowException):
        return False


def _first_of_each_key(rows: pa.Table) -> tuple[pa.Table, list[str]]:
    """Return the rows sorted by key, with only the first row of each key, and the keys of the other rows."""
    rows = rows.sort_by([("key", "ascending"), ("shard", "ascending"), ("row", "ascending")])
    keys = rows["key"].combine_chunks()
    repeated = np.zeros(len(keys), dtype=bool)
    repeated[1:] = pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    return rows.filter(pa.array(~repeated)), keys.filter(pa.array(repeated)).to_pylist()


def fingerprint_of(rows: pa.Table, dataset: str, version: str) -> str:
    """Return a hash of the images and labels, which does not depend on their shards.

    Args:
        rows: The columns `key split pid camid digest`, sorted by key.
        dataset: The dataset's name.
        version: The dataset's version.
    """
    digest = hashlib.blake2b(f"{dataset}\0{version}\0".encode(), digest_size=16)
    for name in ("key", "split"):
        separator = ""
        for values in _chunks(rows[name]):
            digest.update((separator + "\0".join(values)).encode())
            separator = "\0"
    digest.update(rows["pid"].to_numpy().astype("<i4").tobytes())
    digest.update(rows["camid"].to_numpy().astype("<i2").tobytes())
    for values in _chunks(rows["digest"]):
        digest.update(b"".join(values))
    return digest.hexdigest()


def _chunks(column: pa.ChunkedArray) -> Iterator[list[Any]]:
    for start in range(0, len(column), _CHUNK):
        yield column.slice(start, _CHUNK).to_pylist()


def _counts(rows: pa.Table) -> dict[str, Any]:
    splits = rows["split"].combine_chunks().dictionary_encode()
    names, numbers = splits.dictionary.to_pylist(), splits.indices.to_numpy()
    pids, camids = rows["pid"].to_numpy(), rows["camid"].to_numpy()
    of = {name: numbers == names.index(name) for name in sorted(names)}
    return {
        "counts": {name: int(mine.sum()) for name, mine in of.items()},
        "identities": {name: len(np.unique(pids[mine & (pids >= 0)])) for name, mine in of.items()},
        "cameras": len(np.unique(camids[camids >= 0])),
    }
