"""What datasets that lie in a folder have in common."""

from collections.abc import Sequence
from pathlib import Path

from rayreid.data.store import Record
from rayreid.errors import UserError


class FolderLayout:
    """A dataset whose images are files below a root folder.

    Args:
        root: The dataset's folder; "~" is expanded.

    Attributes:
        name: Its name in the registry.
        version: Its edition, where there are several; else "".
        needs: What the root must hold, for messages.
        root: The folder, absolute, for workers whose current folder is another.
        ignored: (path, reason) of what looks like an image of the dataset but gives no record.

    Raises:
        UserError: No root is given, or it is no folder.
    """

    name: str
    version: str = ""
    needs: tuple[str, ...] = ()

    def __init__(self, root: str | Path | None):
        if root is None:
            raise UserError(f"dataset {self.name} needs a root: the folder that holds it")
        self.root = Path(root).expanduser().absolute()
        if not self.root.is_dir():
            raise UserError(f"dataset {self.name}: the folder {self.root} does not exist")
        self.ignored: list[tuple[str, str]] = []

    def read(self, record: Record) -> bytes:
        """Return the file's bytes; raises OSError if it cannot be read."""
        return Path(record.path).read_bytes()

    def ignore(self, path: str, reason: str) -> None:
        """Note a file that gives no record, its name made printable."""
        self.ignored.append((path.encode("utf-8", "backslashreplace").decode(), reason))

    def require(self, *parts: str) -> None:
        """Raise a UserError naming the first of these sub-folders or files that the root does not have."""
        for part in parts:
            if (self.root / part).exists():
                continue
            inside = sorted(child for child in self.root.iterdir() if (child / part).exists())
            hint = f"did you mean root {inside[0]}?" if inside else f"it needs {', '.join(self.needs)}"
            raise UserError(f"dataset {self.name}: {self.root} has no {part}; {hint}")

    def require_images(self, records: Sequence[Record], *splits: str) -> None:
        """Raise a UserError naming the first of these splits that has no record."""
        present = {record.split for record in records}
        for split in splits:
            if split not in present:
                raise UserError(f"dataset {self.name}: {self.root} has no image of split {split!r}")
