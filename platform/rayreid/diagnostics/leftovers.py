"""What interrupted runs, and damage to the disk, left in an output root; clearing up what is safe to clear up.

Nothing below a folder whose lease is held is examined. What no lease covers counts as left only after an hour, by the
storage's clock. An unfinished artifact is work that its stage continues, so it is deleted on demand alone.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from rayreid.errors import UserError, escaped
from rayreid.files import TEMPORARY
from rayreid.state_files import DAMAGED, DamagedFileError, move_aside, read_json
from rayreid.storage.contents import ID, LEASE, LEFT_BY_WRITERS, RECORD, SCRATCH, read_record
from rayreid.storage.lease import Lease
from rayreid.storage.lease_place import UNREADABLE, LeasePlace
from rayreid.storage.metrics_log import MARK, MARK_FORM
from rayreid.storage.removal import PATIENCE_SECONDS, delete_artifact
from rayreid.tracking.database import LOCK
from rayreid.tracking.entries import entry
from rayreid.tracking.outbox import Outbox
from rayreid.tracking.run_note import NOTE_FORM

Discarded = Literal["unfinished", "damaged"]
"""Kinds of leftovers that are deleted on demand alone: unfinished artifacts, and what was moved aside."""

_STRAY = re.compile(
    rf"\..+\.[0-9a-f]{{32}}{re.escape(TEMPORARY)}|\.seen-.+|\..*lease.*\.[0-9a-f]{{32}}(\.clock)?|\.lease-[0-9a-f]{{32}}"
)
_ROOMS = ("experiments", "reports", "undelivered")
"""Folders of an output root that hold no artifacts. Any other folder may be the user's, such as a dataset."""
_LONG_NS = 3600 * 10**9


@dataclass(frozen=True)
class Leftover:
    """Something that was left.

    Attributes:
        text: What it is, and where.
        does: What clearing up does with it; "" if nothing is to be done without being asked for.
        mend: Does it, and returns whether it succeeded; None: see `does`.
        asked: How to ask for more than that.
    """

    text: str
    does: str = ""
    mend: Callable[[], bool] | None = None
    asked: str = ""


def parse_discarded(kinds: Sequence[str]) -> frozenset[str]:
    """Return the kinds of leftovers to delete.

    Raises:
        UserError: There is no such kind.
    """
    for kind in kinds:
        if kind not in get_args(Discarded):
            raise UserError(f"--discard {kind}: name {' or '.join(get_args(Discarded))}")
    return frozenset(kinds)


def leftovers(root: Path, discard: frozenset[str] = frozenset()) -> Iterator[Leftover]:
    """Yield what was left in an output root, the root itself unchanged until a leftover is mended.

    Args:
        root: The output root.
        discard: Kinds of leftovers that clearing up deletes, too.
    """
    now = LeasePlace(root / LOCK).now()
    files = list(_files(root, now))
    yield from _leases(files, root, now)
    yield from _entries(root)
    yield from _notes(files)
    yield from _many(
        [path for path in files if _STRAY.fullmatch(path.name) and _old(path, now)],
        "unfinished files of writers that are gone",
        "removes them",
    )
    yield from _many(list(_scratch(root, now)), "folders that complete artifacts no longer need", "removes them")
    yield from _unfinished(root, now, "unfinished" in discard)
    aside = [path for path in files if DAMAGED in path.name]
    if "damaged" in discard:
        yield from _many(aside, "files that were moved aside as damaged", "deletes them")
    else:
        yield from _many(aside, "files that were moved aside as damaged", asked="--discard damaged deletes them")


def _files(root: Path, now: int) -> Iterator[Path]:
    """Yield the files of a root, and folders that were moved aside.

    Nothing of MLflow's or the user's is among them, and nothing below a held lease.
    """
    for folder, names, files in os.walk(root):
        here = Path(folder)
        if here.parent == root and here.name not in _ROOMS:
            names[:] = [name for name in names if _is_artifact(here / name)]
            files = []
        if _held(here / LEASE, now):
            names.clear()
            continue
        for name in list(names):
            if DAMAGED in name:
                names.remove(name)
                yield here / name
        yield from (here / name for name in files)


def _is_artifact(folder: Path) -> bool:
    """Return whether a folder is named like an artifact, or like what was moved aside of one."""
    return ID.fullmatch(folder.name.partition(DAMAGED)[0]) is not None


def _held(lease: Path, now: int) -> bool:
    """Return whether the holder of a lease may be alive."""
    place = LeasePlace(lease)
    holder, written = place.holder(), place.written()
    if holder is None or written is None:
        return False
    alive = None if holder.token == UNREADABLE else place.alive(holder)
    return now - written < _LONG_NS if alive is None else alive


def _old(path: Path, now: int) -> bool:
    try:
        return now - path.lstat().st_mtime_ns > _LONG_NS
    except FileNotFoundError:
        return False


def _leases(files: Sequence[Path], root: Path, now: int) -> Iterator[Leftover]:
    for path in files:
        if path.name in (LEASE, LOCK) and not _held(path, now):
            mend = partial(Lease(path).clear, PATIENCE_SECONDS)
            yield Leftover(f"{_shown(path)}: the lease of a process that is gone", "removes it", mend)


def _entries(root: Path) -> Iterator[Leftover]:
    for folder in sorted((root / "undelivered").glob("*/")):
        for path, why in Outbox(folder, entry).damaged():
            yield Leftover(
                f"{_shown(path)}: an entry for MLflow that cannot be read ({why})",
                "moves it aside",
                partial(_moved, path, why, "what it holds is not delivered to MLflow"),
            )


def _notes(files: Sequence[Path]) -> Iterator[Leftover]:
    instead = "the next command makes it anew"
    for path in files:
        form = MARK_FORM if path.name == MARK else NOTE_FORM if re.fullmatch(r"run(-\w+)?\.json", path.name) else None
        if form is None:
            continue
        try:
            read_json(path, form)
        except DamagedFileError as error:
            mend = partial(_moved, path, error.why, instead)
            yield Leftover(f"{_shown(path)}: it is damaged ({error.why})", "moves it aside", mend)


def _unfinished(root: Path, now: int, discard: bool) -> Iterator[Leftover]:
    """Yield the artifacts that nobody is making and that are not complete."""
    for folder in sorted(root.glob("*/*/")):
        if not ID.fullmatch(folder.name) or (folder / RECORD).exists() or _held(folder / LEASE, now):
            continue
        resumable = any(_is_work(path) for path in folder.iterdir())
        shown = f"{folder.parent.name}/{folder.name}"
        if not resumable:
            text = f"{shown}: an artifact that was begun, with nothing in it"
            yield Leftover(text, "deletes it", partial(delete_artifact, folder, False))
            continue
        text = f"{shown}: an unfinished artifact, {_size(_bytes(folder))}; the same command continues it"
        if discard:
            yield Leftover(text, "deletes it", partial(delete_artifact, folder, False))
        else:
            yield Leftover(text, asked="--discard unfinished deletes it")


def _scratch(root: Path, now: int) -> Iterator[Path]:
    """Yield what the run that finished an artifact removes afterwards, and did not."""
    for folder in sorted(root.glob("*/*/")):
        if ID.fullmatch(folder.name) and not _held(folder / LEASE, now) and _is_complete(folder):
            yield from (folder / name for name in SCRATCH if (folder / name).exists())


def _is_complete(folder: Path) -> bool:
    try:
        read_record(folder)
    except (FileNotFoundError, UserError):  # a damaged one is made again from what is there
        return False
    return True


def _is_work(path: Path) -> bool:
    """Return whether something in the folder of an unfinished artifact is of use to its stage."""
    return path.name not in LEFT_BY_WRITERS and DAMAGED not in path.name and not _STRAY.fullmatch(path.name)


def _many(paths: Sequence[Path], what: str, does: str = "", asked: str = "") -> Iterator[Leftover]:
    if paths:
        size = _size(sum(map(_bytes, paths)))
        text = f"{len(paths):,} {what}, {size} (first {_shown(paths[0])})"
        yield Leftover(text, does, partial(_remove, paths) if does else None, asked)


def _remove(paths: Sequence[Path]) -> bool:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return True


def _moved(path: Path, why: str, instead: str) -> bool:
    move_aside(path, why, instead)
    return True


def _bytes(path: Path) -> int:
    try:
        if not path.is_dir():
            return path.lstat().st_size
        return sum(_bytes(inner) for inner in path.iterdir())
    except OSError:  # it has gone meanwhile, or cannot be looked at
        return 0


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _shown(path: Path) -> str:
    return escaped(str(path))
