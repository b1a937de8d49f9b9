"""Whether a complete image store still holds what its dataset holds.

The store's witness answers this from names, sizes and times. Only if these differ are labels compared, and the bytes of
those images whose files differ: a copy of a dataset, or a touched file, changes nothing.
"""

from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayreid.data.datasets import Dataset
from rayreid.data.datasets.existing_store import ExistingStore
from rayreid.data.images import BadImageError, examine
from rayreid.data.store.listing import listed_rows
from rayreid.data.store.shards import REJECTED_SCHEMA, UNREADABLE, Record, digest_of_image, read_or_reason
from rayreid.data.store.store import ImageStore
from rayreid.data.store.witness import Witness, digest_of_files, write_witness
from rayreid.errors import UserError, escaped
from rayreid.parquet import read_columns
from rayreid.state_files import DamagedFileError

_THREADS = 8  # reading waits for the storage, not for the CPU
_CHUNK = 4096
_LEAST = "at least "
_COLUMNS = ("key", "pid", "camid", "split", "path")


def changes_since_ingest(
    directory: Path, dataset: Dataset, place: str, verify: Literal["full", "quick"] = "quick"
) -> str:
    """Return how a dataset differs from the store that was made from it; "" if the store holds the same.

    If the files differ but hold the same images and labels, the store's witness is written anew, unless they changed
    while they were compared.

    Args:
        directory: The folder of the complete store.
        dataset: The dataset, opened anew.
        place: Where the dataset is, for messages.
        verify: "quick" compares contents only if names, sizes or times differ; "full" compares all contents.

    Raises:
        UserError: The dataset or the store's list of rejected images cannot be read, or the storage does not answer.
    """
    if isinstance(dataset, ExistingStore):
        same = dataset.manifest["fingerprint"] == ImageStore(directory).fingerprint
        return "" if same else f"{place} is another store"
    witness = Witness(directory)
    compared = digest_of_files(dataset.sources())
    same_files = compared == witness.digest
    rejected = _rejected(directory / "rejected.parquet")
    found = ""
    if not same_files or verify == "full":
        found = _compare(ImageStore(directory), rejected, dataset, _untouched(witness, dataset, verify))
        if not found and not same_files:
            write_witness(directory, dataset.sources(), place, expected=compared)
    found = found or _readable(rejected, dataset)
    if found and witness.place not in ("", place):
        return f"{found}; it was read from {witness.place}, the dataset is now {place}"
    return found


def _rejected(path: Path) -> pa.Table:
    try:
        return read_columns(path, {name: REJECTED_SCHEMA.field(name).type.equals for name in REJECTED_SCHEMA.names})
    except DamagedFileError as error:
        raise UserError(
            f"{path} cannot be read ({error.why}); copy the store again, or remove {path.parent} and ingest again"
        ) from error


def _untouched(witness: Witness, dataset: Dataset, verify: str) -> Container[str]:
    """Return the names of the files that are as they were."""
    if verify == "full":
        return ()
    known = set(witness.files())
    return {file.name for file in dataset.sources() if file in known}


def _compare(store: ImageStore, rejected: pa.Table, dataset: Dataset, untouched: Container[str]) -> str:
    """Return how a listing differs from a store in its images and labels, and else in the bytes of touched files."""
    every = _listing(dataset, untouched)
    listing = _first_of_each_key(every)
    if dataset.version != store.manifest["version"]:
        return f"its edition is {dataset.version}, not {store.manifest['version']}"
    rows = store.find(listing["key"].combine_chunks())
    stored = rows.is_valid()
    lost = pc.invert(pc.is_in(pa.array(store.keys, pa.string()), value_set=listing["key"]))
    new = pc.invert(pc.or_(stored, pc.is_in(listing["key"].combine_chunks(), value_set=rejected["key"])))
    differences = [
        _told(listing["key"].filter(new), "added"),
        _told(pa.array(store.keys[lost.to_numpy(zero_copy_only=False)], pa.string()), "removed"),
        _told(_relabelled(store, every), "given another identity, camera or split"),
    ]
    return ", ".join(filter(None, differences)) or _compare_bytes(store, listing, every, dataset)


def _listing(dataset: Dataset, untouched: Container[str]) -> pa.Table:
    """Return all records, their positions, and whether their files were touched."""
    batches = []
    for batch in listed_rows(dataset.records()):
        touched = [dataset.source_of(record) not in untouched for record in _records(batch)]
        batches.append(batch.append_column("touched", pa.array(touched, pa.bool_())))
    table = pa.Table.from_batches(batches)
    return table.append_column("position", pa.array(np.arange(len(table))))


def _first_of_each_key(every: pa.Table) -> pa.Table:
    """Return the first record of each key, and whether the file of any record of that key was touched."""
    groups = every.group_by("key", use_threads=False).aggregate([("position", "min"), ("touched", "any")])
    first = every.take(groups["position_min"])
    return first.set_column(first.schema.get_field_index("touched"), "touched", groups["touched_any"])


def _relabelled(store: ImageStore, every: pa.Table) -> pa.Array:
    """Return the keys of which no record has the labels that the store has."""
    rows = store.find(every["key"].combine_chunks())
    listed, at = every.filter(rows.is_valid()), rows.drop_null().to_numpy()
    alike = np.ones(len(at), bool)
    for name, values in (("pid", store.pids), ("camid", store.camids), ("split", store.splits)):
        alike &= listed[name].to_numpy() == values[at]
    return store.keys_of(np.setdiff1d(at, at[alike]))


def _compare_bytes(store: ImageStore, listing: pa.Table, every: pa.Table, dataset: Dataset) -> str:
    """Return whether touched files hold other bytes than the store, or images that were rejected; stop at the first."""
    digests = store.digests()
    touched = listing.filter(listing["touched"])
    further = _further(every, touched)
    changed = partial(_has_changed, dataset)
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch in touched.to_batches(_CHUNK):
            records = [[record, *further.get(record.key, ())] for record in _records(batch)]
            found = list(pool.map(changed, records, digests.take(store.find(batch["key"])).to_pylist()))
            if any(found):
                return _told(batch["key"].filter(pa.array(found)), "changed", _LEAST)
    return ""


def _readable(rejected: pa.Table, dataset: Dataset) -> str:
    """Return whether images that could not be read, which says nothing about their files, now can be.

    It stops at the first, give or take those that are read at the same time.
    """
    mine = rejected.filter(pc.starts_with(rejected["reason"], UNREADABLE))
    records = (Record(row["key"], -1, -1, "", row["path"]) for row in mine.to_pylist())
    with ThreadPoolExecutor(_THREADS) as pool:
        while some := list(islice(records, _THREADS)):
            found = zip(some, pool.map(partial(read_or_reason, read=dataset.read), some), strict=True)
            readable = [record.key for record, data in found if not isinstance(data, str)]
            if readable:
                return _told(pa.array(readable, pa.string()), "readable now", _LEAST)
    return ""


def _further(every: pa.Table, first: pa.Table) -> dict[str, list[Record]]:
    """Return the further records of those keys that are listed more than once, by key."""
    mine = pc.is_in(every["key"], value_set=first["key"])
    again = pc.invert(pc.is_in(every["position"], value_set=first["position"]))
    found: dict[str, list[Record]] = {}
    for batch in every.filter(pc.and_(mine, again)).to_batches():
        for record in _records(batch):
            found.setdefault(record.key, []).append(record)
    return found


def _has_changed(dataset: Dataset, records: list[Record], stored: bytes | None) -> bool:
    """Return whether the records of a key hold another image than that whose hash is `stored`.

    An ingest stores the first record that is an image. `stored` is None if all were rejected.
    """
    for record in records:
        data = read_or_reason(record, dataset.read)
        if isinstance(data, str):
            continue
        if stored is not None and digest_of_image(data) == stored:
            return False
        if _is_image(data):
            return True
    return stored is not None


def _is_image(data: bytes) -> bool:
    try:
        examine(data, decoding=True)
    except BadImageError:
        return False
    return True


def _records(batch: pa.RecordBatch) -> Iterator[Record]:
    return (Record(*row) for row in zip(*(batch[name].to_pylist() for name in _COLUMNS), strict=True))


def _told(keys: pa.Array | pa.ChunkedArray, what: str, least: str = "") -> str:
    return f"{least}{len(keys):,} {what} (first {escaped(keys[0].as_py())})" if len(keys) else ""
