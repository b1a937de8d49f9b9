"""Comparison of all artifacts of an output root with the checksums that were recorded when they were complete."""

from collections.abc import Iterator
from pathlib import Path

from rayreid.console import Screen
from rayreid.data.store.manifest import INDEX, MANIFEST
from rayreid.data.store.store import ImageStore
from rayreid.diagnostics.finding import Finding
from rayreid.errors import UserError, escaped
from rayreid.storage import contents
from rayreid.storage.contents import ID, RECORD

_SUBJECT = "artifact"
_SHOWN = 3
_MIB = 2**20


def verified(root: Path, screen: Screen) -> Iterator[Finding]:
    """Yield one line per artifact that is damaged or cannot be compared fully, and a last one for all others.

    Args:
        root: The output root.
        screen: Screen that shows progress.
    """
    folders = sorted(path.parent for path in root.glob(f"*/*/{RECORD}") if ID.fullmatch(path.parent.name))
    sizes = {folder: _size(folder) for folder in folders}
    whole = 0
    done = 0
    with screen.bar("comparing checksums, MiB", round(sum(sizes.values()) / _MIB)) as bar:
        for folder in folders:
            finding = _look(folder)
            whole += finding is None
            if finding is not None:
                yield finding
            done += sizes[folder]
            bar.to(round(done / _MIB))
    yield Finding("ok", _SUBJECT, f"{whole:,} of {len(folders):,} in {root} match their checksums")


def _size(folder: Path) -> int:
    try:
        return sum(entry.size for entry in (contents.parsed(folder).files or {}).values())
    except (UserError, OSError):  # it is named when it is compared
        return 0


def _look(folder: Path) -> Finding | None:
    """Compare one artifact; return None if nothing is to be said about it."""
    try:
        changed = contents.verify(folder)
    except FileNotFoundError:  # another command has moved it aside meanwhile
        return None
    except UserError as error:
        return Finding("bad", _SUBJECT, str(error))
    if changed:
        return Finding("bad", _SUBJECT, _damage(folder, changed))
    if (folder / MANIFEST).is_file() and (folder / INDEX).is_file():
        return _look_at_store(folder)
    if contents.parsed(folder).files is None:
        return Finding("note", _SUBJECT, f"{folder}: made by a version that recorded no checksums; not compared")
    return None


def _damage(folder: Path, changed: list[str]) -> str:
    names = ", ".join(map(escaped, changed[:_SHOWN])) + (f" and {len(changed) - _SHOWN} more" * (len(changed) > _SHOWN))
    return (
        f"{folder}: missing or changed since it was made: {names}; restore from a copy, or run its experiment again, "
        "which makes that again"
    )


def _look_at_store(folder: Path) -> Finding | None:
    try:
        store = ImageStore(folder)
        elsewhere = store.files.origin != str(store.directory)
        if not elsewhere and contents.parsed(folder).files is None:
            store.verify()  # the manifest has had checksums of shards from the beginning
    except UserError as error:
        return Finding("bad", _SUBJECT, str(error))
    if elsewhere:
        text = f"its shards are in {store.files.origin}; rayreid inspect {folder} --verify compares them, too"
        return Finding("note", _SUBJECT, f"{folder}: {text}")
    if not store.checked:
        text = "ingested by a version without checksums of single images: they are read without a comparison"
        return Finding("note", _SUBJECT, f"{folder}: {text}")
    return None
