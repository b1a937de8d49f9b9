"""A check, before any work starts, that every node sees the shared storage."""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rayreid.errors import UserError
from rayreid.execution.nodes import alone, ask_every_node
from rayreid.files import make_folder, write_atomically
from rayreid.paths import data_path, output_root

_PATIENCE_SECONDS = 5.0  # a network file system may show a new file late


@dataclass(frozen=True)
class Token:
    """A file in the output root that this process has just written; its description is sent to the nodes.

    Attributes:
        root: The output root.
        data: `RAYREID_DATA`, if it is set to a folder that this process sees; otherwise None.
        secret: Text that forms the file's name and is its content.
    """

    root: Path
    data: Path | None
    secret: str

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return self.root / f".seen-{self.secret}"

    def complaints(self) -> list[str]:
        """Return the problems of the storage as seen from the calling machine; empty if there are none."""
        found = [] if self.data is None or self.data.is_dir() else [f"does not see RAYREID_DATA={self.data}"]
        try:
            seen = self._seen()
        except OSError as error:
            return [f"cannot read RAYREID_ROOT={self.root} ({error.strerror})", *found]
        if not self.root.is_dir():
            return [f"does not see RAYREID_ROOT={self.root}", *found]
        if not seen:
            return [f"has another folder at RAYREID_ROOT={self.root}, in which the driver's files are not", *found]
        own = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        try:
            own.touch()
            own.unlink()
        except OSError as error:
            found.append(f"cannot write to RAYREID_ROOT={self.root} ({error.strerror})")
        return found

    def _seen(self) -> bool:
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with contextlib.suppress(FileNotFoundError):
                if self.path.read_text() == self.secret:
                    return True
            if time.monotonic() > until or not self.root.is_dir():
                return False
            time.sleep(0.2)


@contextlib.contextmanager
def token() -> Iterator[Token]:
    """Write a token, yield it, and remove its file at the end.

    Raises:
        UserError: The output root cannot be created.
    """
    root = output_root()
    make_folder(root)
    data = data_path("") if os.environ.get("RAYREID_DATA") else None
    made = Token(root, data if data is not None and data.is_dir() else None, uuid.uuid4().hex)
    write_atomically(made.path, made.secret)
    try:
        yield made
    finally:
        made.path.unlink(missing_ok=True)


def check_storage() -> None:
    """Check that every node sees the outputs and the data, and may write the outputs.

    Nodes that join later are not checked.

    Raises:
        UserError: Some nodes fail the check; the message names them.
    """
    if alone():
        return
    with token() as made:
        answers = ask_every_node(made.complaints)
    faults = [f"node {a.node} {fault}" for a in answers for fault in ([a.error] if a.error else a.value)]
    if faults:
        more = f"; and {len(faults) - 3} more (rayreid doctor)" if len(faults) > 3 else ""
        raise UserError(
            f"{'; '.join(faults[:3])}{more}: mount the same storage at the same place on every node, or set the "
            "variable to a place that all see, before Ray is started there"
        )
