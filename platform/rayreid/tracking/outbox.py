"""An ordered queue on disk of entries to deliver."""

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rayreid import forms
from rayreid.files import TEMPORARY, make_folder, write_atomically
from rayreid.state_files import DamagedFileError, damaged, if_whole, move_aside, read_json
from rayreid.storage.contents import LEASE

_FILE_NAME = forms.matching(r"(?!\.{1,2}$)[^/\0]{1,255}")
_DIGITS = 20
_LONG_SECONDS = 3600.0
_INSTEAD = "what it holds is not delivered to MLflow"


@dataclass(frozen=True)
class Entry:
    """One entry to deliver.

    Attributes:
        path: The entry's file.
        content: The content that was put, as plain JSON values.
        payload: A file that belongs to the entry, under its original name; None if there is none.
    """

    path: Path
    content: dict[str, Any]
    payload: Path | None

    def drop(self) -> None:
        """Delete the entry because it was delivered, or never can be."""
        self.path.unlink(missing_ok=True)
        if self.payload is not None:
            self.payload.unlink(missing_ok=True)
            _remove(self.payload.parent)

    def set_aside(self, why: str) -> None:
        """Give the entry another name because it cannot be delivered, so that those after it can be."""
        move_aside(self.path, why, _INSTEAD)


class Outbox:
    """The entries for one receiver; several processes may put and deliver at once.

    Each entry is a file of its own, written atomically. If a process dies after delivering an entry and before dropping
    it, the entry is delivered again, so deliveries must be idempotent. An entry that is damaged is moved aside.

    Args:
        folder: Folder of the entries; created with the first one and removed with the last.
        form: The form of an entry's content.
    """

    def __init__(self, folder: Path, form: forms.Form = forms.anything):
        self.folder = folder
        self._form = forms.record({"content": form, "payload": forms.or_none(_FILE_NAME)})

    def put(self, content: dict[str, Any], name: str = "", payload: bytes | None = None) -> Path:
        """Append an entry and return its file; a payload is kept as a file called `name`."""
        number = max(time.time_ns(), *(_number(path) + 1 for path in self._paths()), 0)  # also if the clock is set back
        path = self.folder / f"{number:0{_DIGITS}d}-{uuid.uuid4().hex[:8]}.json"
        entry = json.dumps({"content": content, "payload": name if payload is not None else None})
        while not path.exists():
            with contextlib.suppress(FileNotFoundError):  # another process may remove the empty folder meanwhile
                make_folder(self.folder)
                if payload is not None:
                    make_folder(path.with_suffix(""))
                    write_atomically(path.with_suffix("") / name, payload)
                write_atomically(path, entry)
                break
        return path

    def entries(self) -> Iterator[Entry]:
        """Yield the entries, oldest first."""
        for path in self._paths():
            entry = None
            with contextlib.suppress(FileNotFoundError):  # another process has delivered it, and removed the folder
                entry = if_whole(path, partial(self._read, path), _INSTEAD)
            if entry is not None:
                yield entry

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Yield the entries that cannot be read, and why; they stay where they are."""
        for path in self._paths():
            try:
                self._read(path)
            except FileNotFoundError:  # another process has delivered it, and removed the folder
                continue
            except DamagedFileError as error:
                if path.exists():
                    yield path, error.why

    def _paths(self) -> list[Path]:
        try:
            paths = sorted(self.folder.iterdir())
        except FileNotFoundError:  # no entry was put yet, or another process delivered them all
            return []
        # A hidden file is still being written, a folder is a payload's, and the lease is that of who delivers.
        return [path for path in paths if path.name[0] != "." and path.suffix == ".json" and path.name != LEASE]

    def _read(self, path: Path) -> Entry:
        held = read_json(path, self._form)
        payload = None if held["payload"] is None else path.with_suffix("") / held["payload"]
        if payload is not None and not payload.is_file():
            raise damaged(path, f"its file {held['payload']} is missing")
        return Entry(path, held["content"], payload)

    def sweep(self) -> None:
        """Remove what processes left that were killed while they put or dropped an entry, an hour later."""
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                alone = path.is_dir() and not list(self.folder.glob(f"{path.name}.json*"))  # not even set aside
                if (alone or path.name.endswith(TEMPORARY)) and time.time() - path.stat().st_mtime > _LONG_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.clear_away()

    def clear_away(self) -> None:
        """Remove the folder if it is empty."""
        _remove(self.folder)


def _number(path: Path) -> int:
    """Return the number with which the name of an entry begins."""
    number = path.name.partition("-")[0]
    return int(number) if number.isdecimal() and len(number) == _DIGITS else 0


def _remove(folder: Path) -> None:
    """Remove a folder if it is empty; another process may have removed it already."""
    with contextlib.suppress(OSError):
        folder.rmdir()
