"""What a complete artifact consists of: `artifact.json`, with the size and the checksum of every other file.

It is written last, after all these files have reached the disk. So an artifact that has it is whole, unless it was
damaged later or storage lost what it had promised to keep, and then sizes or checksums say so.
"""

import contextlib
import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rayreid.disk_faults import as_storage_error
from rayreid.errors import UserError, escaped, one_line
from rayreid.files import checksum, sync_file, sync_folder
from rayreid.state_files import DAMAGED

ID = re.compile(r"[0-9a-f]{12}")
"""The form of an artifact's id, which is the name of its folder."""
RECORD = "artifact.json"
LEASE = "lease.json"
WRITERS = ".writers.json"

LEFT_BY_WRITERS = (LEASE, WRITERS)
"""Files in an incomplete artifact's folder that say who writes it."""

SCRATCH = ("checkpoints", "measures", "ray", "start")
"""Folders of an artifact that are deleted when it is complete."""

KEPT = "epochs"
"""Folder of an artifact with checkpoints that are kept, with seals of their own."""

_UNRECORDED = {
    *SCRATCH,
    *LEFT_BY_WRITERS,
    RECORD,
    KEPT,  # compared with their seals whenever one is used; many GB, which users may delete
    "run.json",  # names the MLflow run for who resumes; no part of the result
    "delivered.json",  # renewed when rows that MLflow missed are delivered later
    "witness.parquet",  # renewed when the files of a dataset were touched and hold the same
}
"""Names in an artifact's folder that may change or go after it is complete."""

_GROWING = (".jsonl", ".tsv")
"""Suffixes of files to which a writer that lost the lease may still append; readers skip what it adds."""

_MOST_BYTES = 2**28

_whole: dict[Path, tuple[int, ...]] = {}


class DamagedError(UserError):
    """An error for a complete artifact that is not what was written.

    Args:
        folder: The artifact's folder.
        reason: What is wrong.
    """

    def __init__(self, folder: Path, reason: str):
        super().__init__(
            f"{escaped(str(folder))}: this artifact is damaged: {escaped(reason)}; restore it from a copy, or run its "
            "experiment again, which makes it again"
        )
        self.reason = reason


@dataclass(frozen=True)
class Entry:
    """What `artifact.json` records about a file: its size in bytes and its checksum (see `files.checksum`)."""

    size: int
    checksum: str


@dataclass(frozen=True)
class Record:
    """The content of `artifact.json`.

    Attributes:
        recipe: How the artifact was made: `stage`, `version`, `fields` and `inputs` (ids by role).
        facts: What its stage reported.
        files: Its files, by path within the folder; None if it was made by a version that recorded none.
        id: Its id; "" if it is not stated.
        made_by: The command, host and versions that made it; empty if it was made by a version that recorded none.
    """

    recipe: Mapping[str, Any]
    facts: dict[str, Any]
    files: Mapping[str, Entry] | None
    id: str = ""
    made_by: Mapping[str, Any] = field(default_factory=dict)


def settle(folder: Path, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Bring all files of a folder to the disk, and return what `artifact.json` records about them.

    Args:
        folder: The folder of an artifact that is about to be complete.
        known: Checksums of files that need not be read again, by path within the folder.
    """
    recorded = {}
    kept = list(_below(folder / KEPT)) if (folder / KEPT).is_dir() else []
    for path in kept:
        sync_file(path)
    for path in _files(folder):
        sync_file(path)
        name = path.relative_to(folder).as_posix()
        recorded[name] = {"size": path.stat().st_size, "checksum": known.get(name) or checksum(path)}
    names = [*recorded, *(path.relative_to(folder).as_posix() for path in kept)]
    for one in sorted(_folders(folder, names), reverse=True):  # the inner ones first
        sync_folder(one)
    return dict(sorted(recorded.items()))


def _folders(folder: Path, names: Iterable[str]) -> set[Path]:
    """Return a folder, and those of its folders in which files lie, at any depth, by names of files within it."""
    return {folder, *(folder / parent for name in names for parent in PurePosixPath(name).parents)}


def settle_names(folder: Path) -> None:
    """Bring the name of an artifact's record, and the folder's own name, to the disk."""
    for one in (folder, folder.parent, folder.parent.parent):
        sync_folder(one)


def read_record(folder: Path) -> Record:
    """Return the record of a complete artifact whose files have the recorded sizes.

    Raises:
        FileNotFoundError: The artifact is not complete.
        DamagedError: The record cannot be understood, or a file is missing or has another size.
        UserError: The storage does not let the files be read.
    """
    with _reading(folder):
        status = (folder / RECORD).stat()
    record = parsed(folder)
    # A store has hundreds of files, and whether an artifact is complete is asked again and again.
    seen = (status.st_mtime_ns, status.st_size, status.st_ino)
    if _whole.get(folder) != seen:
        for name, entry in (record.files or {}).items():
            if not name.endswith(_GROWING):  # a record of how the result was made; it is not worth making that again
                _compare_size(folder, name, entry)
        _whole[folder] = seen
    return record


def parsed(folder: Path) -> Record:
    """Return the record of an artifact without looking at its files; see `read_record` for the errors."""
    path = folder / RECORD
    with _reading(folder):
        if path.stat().st_size > _MOST_BYTES:
            raise DamagedError(folder, f"{RECORD} has {path.stat().st_size:,} bytes")
        content = path.read_bytes()
    try:
        return _parsed(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = one_line(error, limit=100) if content else "it is empty"
        raise DamagedError(folder, f"{RECORD} cannot be understood ({reason})") from None


def verify(folder: Path) -> list[str]:
    """Read all files of an artifact, and return the names of those that are missing or changed.

    Raises:
        FileNotFoundError: The artifact is not complete.
        DamagedError: Its record cannot be understood.
        UserError: The storage does not let the files be read.
    """
    recorded = parsed(folder).files or {}
    return [name for name, entry in recorded.items() if not _same(folder, name, entry)]


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in _UNRECORDED or path.name.startswith(f"{LEASE}.") or not _recorded(path):
            continue
        yield from _below(path)


def _below(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            if _recorded(inner):
                yield from _below(inner)
    else:
        yield path


def _recorded(path: Path) -> bool:
    """Return whether a file belongs to the result: temporary files and what was moved aside may go at any time."""
    return not path.name.startswith(".") and DAMAGED not in path.name


def _compare_size(folder: Path, name: str, entry: Entry) -> None:
    size = _size(folder, name)
    if size is None:
        raise DamagedError(folder, f"{name} is missing")
    if size < entry.size or (size > entry.size and not name.endswith(_GROWING)):
        raise DamagedError(folder, f"{name} has {size:,} bytes instead of {entry.size:,}")


def _same(folder: Path, name: str, entry: Entry) -> bool:
    try:
        _compare_size(folder, name, entry)
    except DamagedError:
        return False
    with _reading(folder):
        return checksum(folder / name, entry.size) == entry.checksum


def _size(folder: Path, name: str) -> int | None:
    """Return the size of a regular file; None if there is none."""
    try:
        with _reading(folder):
            status = (folder / name).stat()
    except (FileNotFoundError, NotADirectoryError):
        for part in (folder / name, *(folder / name).parents):
            if part.is_symlink() and not part.exists():
                raise UserError(
                    f"{part}: leads to {part.readlink()}, which is not there; mount it, and run again"
                ) from None
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Raise refusals of the storage as errors that the user can fix: they say nothing about the artifact."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise as_storage_error(error, folder) or UserError(f"{folder}: cannot be read ({one_line(error)})") from error


def _parsed(content: Any) -> Record:
    recipe, facts, files = content["recipe"], content["facts"], content.get("files")
    if not (isinstance(recipe, dict) and isinstance(recipe.get("stage"), str)):
        raise ValueError("recipe is no recipe")
    if not (isinstance(recipe.get("fields"), dict) and isinstance(recipe.get("inputs"), dict)):
        raise ValueError("recipe has no fields and inputs")
    if not all(isinstance(identifier, str) for identifier in recipe["inputs"].values()):
        raise ValueError("an input is no id")
    if not isinstance(facts, dict):
        raise ValueError("facts are no facts")
    entries = None if files is None else {name: _entry(name, value) for name, value in files.items()}
    made_by = content.get("made_by", {})
    if not isinstance(made_by, dict):
        raise ValueError("made_by is no object")
    return Record(recipe, facts, entries, str(content.get("id", "")), made_by)


def _entry(name: str, value: Mapping[str, Any]) -> Entry:
    size, content = value["size"], value["checksum"]
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} is no file of an artifact")
    if type(size) is not int or not isinstance(content, str):
        raise ValueError(f"{name!r} has no size and checksum")
    return Entry(size, content)
