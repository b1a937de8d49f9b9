"""All artifacts of an output root, as their folders and records tell, without the experiments that made them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rayreid.errors import UserError, escaped, one_line
from rayreid.storage.contents import ID, RECORD, DamagedError, Record, parsed


@dataclass(frozen=True)
class Stored:
    """The folder of an artifact.

    Attributes:
        folder: The folder, `<root>/<stage>/<id>`.
        record: Its record; None if it is not complete, or if its record cannot be read.
        fault: Why its record cannot be read; "" if it can, or if there is none.
    """

    folder: Path
    record: Record | None
    fault: str = ""

    @property
    def id(self) -> str:
        """Return its id, the name of the folder."""
        return self.folder.name

    @property
    def stage(self) -> str:
        """Return the stage that made it."""
        return self.folder.parent.name

    @cached_property
    def size(self) -> int:
        """Return the bytes of its files; links are not followed."""
        return size_of(self.folder)

    def __str__(self) -> str:
        return f"{self.stage}/{self.id}"


class Inventory:
    """The artifacts of an output root at one moment; nothing is written, and links are not followed.

    A folder whose record names another stage than the folder above it is a copy or the user's, and none of them.

    Args:
        root: The output root; it may not exist.

    Attributes:
        folders: All artifacts.
        stored: The artifacts by id; of several unfinished ones with the same id, the first.
        unreadable: Folders that cannot be looked at, with the reason.

    Raises:
        UserError: The root is no folder, or cannot be listed.
    """

    def __init__(self, root: Path):
        self.root = root
        self.unreadable: dict[Path, str] = {}
        self.folders = tuple(_stored(root, self.unreadable))
        self.stored: dict[str, Stored] = {}
        for one in sorted(self.folders, key=lambda one: one.record is None):  # the complete ones first
            self.stored.setdefault(one.id, one)

    def complete(self, stage: str) -> list[Stored]:
        """Return the complete artifacts of a stage."""
        return [one for one in self.folders if one.stage == stage and one.record is not None]

    def record(self, identifier: str) -> Record | None:
        """Return the record of an artifact; None if there is none that can be read."""
        found = self.stored.get(identifier)
        return found.record if found else None


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links are not followed."""
    try:
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        return sum(map(size_of, path.iterdir()))
    except OSError:  # it has gone meanwhile, or cannot be looked at
        return 0


def _stored(root: Path, unreadable: dict[Path, str]) -> Iterator[Stored]:
    if not root.is_dir():
        if root.exists():
            raise UserError(f"{root}: it is no folder; set RAYREID_ROOT to the folder of the outputs")
        return
    try:
        stages = _folders(root)
    except OSError as error:
        raise UserError(f"{root}: it cannot be listed ({one_line(error)}); see its permissions") from None
    for stage in stages:
        try:
            found = [folder for folder in _folders(stage) if ID.fullmatch(folder.name)]
        except OSError as error:
            unreadable[stage] = one_line(error)
            continue
        stored = (_look(folder) for folder in found)
        yield from (one for one in stored if one.record is None or one.record.recipe["stage"] == one.stage)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _look(folder: Path) -> Stored:
    try:
        if not (folder / RECORD).exists():
            return Stored(folder, None)
        record = parsed(folder)
    except DamagedError as error:
        return Stored(folder, None, escaped(error.reason))
    except (UserError, OSError) as error:
        return Stored(folder, None, one_line(error))
    if record.recipe["stage"] == folder.parent.name and record.id not in ("", folder.name):
        return Stored(folder, None, f"{RECORD} is that of {escaped(record.id)}")
    return Stored(folder, record)
