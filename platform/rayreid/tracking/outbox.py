"""What could not be delivered yet: entries on the disk, in order, until somebody can deliver them."""

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayreid.files import make_folder, write_atomically


@dataclass(frozen=True)
class Entry:
    """One thing to deliver.

    Attributes:
        path: its file.
        content: what was put, as plain JSON values.
        payload: a file that belongs to it, under the name that it was given; None where it has none.
    """

    path: Path
    content: dict[str, Any]
    payload: Path | None

    def drop(self) -> None:
        """Forget it: it was delivered, or never can be."""
        self.path.unlink(missing_ok=True)
        if self.payload is not None:
            self.payload.unlink(missing_ok=True)
            _remove(self.payload.parent)


class Outbox:
    """Entries for one receiver; several processes may put and deliver at once.

    Each entry is a file of its own, written whole or not at all. One that is delivered and not yet dropped when its
    process dies is delivered again: what is delivered must bear that.

    Args:
        folder: made with the first entry, and removed with the last.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def put(self, content: dict[str, Any], name: str = "", payload: bytes | None = None) -> None:
        """Add an entry after all others; with a payload, kept as a file called `name`."""
        path = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        entry = json.dumps({"content": content, "payload": name if payload is not None else None})
        while not path.exists():
            with contextlib.suppress(FileNotFoundError):  # the folder may be cleared away by another process meanwhile
                make_folder(self.folder)
                if payload is not None:
                    make_folder(path.with_suffix(""))
                    write_atomically(path.with_suffix("") / name, payload)
                write_atomically(path, entry)
                return

    def entries(self) -> Iterator[Entry]:
        """What is there, oldest first."""
        try:
            paths = sorted(self.folder.iterdir())
        except FileNotFoundError:  # none was put yet, or another process has delivered all
            return
        for path in paths:
            if path.name.startswith(".") or path.suffix != ".json":  # being written, or the payload of one
                continue
            try:
                held = json.loads(path.read_text())
            except FileNotFoundError:  # delivered by another process meanwhile
                continue
            payload = None if held["payload"] is None else path.with_suffix("") / held["payload"]
            yield Entry(path, held["content"], payload)

    def clear_away(self) -> None:
        """Remove the folder if nothing is left in it."""
        _remove(self.folder)


def _remove(folder: Path) -> None:
    """Remove a folder unless something is in it, or another process has removed it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
