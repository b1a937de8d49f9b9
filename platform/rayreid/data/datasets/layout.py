"""The common base of datasets: their location, the files that they ignore, and the files that they need."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import normpath
from typing import Any

from rayreid.data.datasets.kinds import is_named_image, kind_by_name
from rayreid.data.datasets.misplaced import remedy
from rayreid.data.datasets.place import is_uri, local_path
from rayreid.data.datasets.tree import check_plain, is_hidden, walk
from rayreid.data.store.shards import Record
from rayreid.data.store.witness import SourceFile, file_at
from rayreid.errors import UserError, escaped
from rayreid.paths import expanded

_REASONS = 4  # named in a message


def refusal(path: str) -> str | None:
    """Return the reason to refuse a path relative to a root, judged by its text alone; None if it is acceptable."""
    if not path or "\0" in path:
        return "not a path"
    return "outside its root" if path.startswith("/") or ".." in path.split("/") else None


def printable(path: str) -> str:
    """Return a path that may not be UTF-8 as a text that is."""
    return path.encode("utf-8", "backslashreplace").decode()


def passed_over(ignored: Sequence[tuple[str, str]], left_out: Mapping[str, tuple[int, str]]) -> str:
    """Return, for the end of a message, how many files gave no record, the first of them, and why.

    Args:
        ignored: (path, reason) of each file that looks like an image of the dataset.
        left_out: Number and first of the other files, by reason.
    """
    found = [f"{len(ignored)} ignored, first {': '.join(ignored[0])}"] if ignored else []
    found += [f"{count} left out, first {path}: {reason}" for reason, (count, path) in left_out.items()]
    text = "; ".join([*found[:_REASONS], *(["…"] if len(found) > _REASONS else [])])
    return f" ({escaped(text)})" if text else ""


class Layout:
    """A dataset, wherever it is stored.

    It is pickled into every worker that reads images, so it never carries a listing or an open file.

    Attributes:
        name: The dataset's name in the registry.
        version: The edition, if there are several; else "".
        ignored: (path, reason) of files that look like images of the dataset but give no record.
        left_out: Files that are no images of the dataset, by reason: their number and the first of them.
        notes: Lines for the user on how the dataset was read.
    """

    name: str
    version: str = ""

    def __init__(self) -> None:
        self.ignored: list[tuple[str, str]] = []
        self.left_out: dict[str, tuple[int, str]] = {}
        self.notes: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ignored": [], "left_out": {}, "notes": []}

    def ignore(self, path: str, reason: str) -> None:
        """Record a file that gives no record, with its name made printable."""
        self.ignored.append((printable(path), reason))

    def leave_out(self, path: str, reason: str) -> None:
        """Count a file that is no image of the dataset."""
        count, first = self.left_out.get(reason, (0, printable(path)))
        self.left_out[reason] = (count + 1, first)

    def can_name(self, key: str) -> bool:
        """Return whether an index can contain this key; if not, record the file as ignored."""
        try:
            key.encode()
        except UnicodeEncodeError:
            self.ignore(key, "name is not UTF-8")
            return False
        return True

    def at_least_one(self, records: Iterator[Record], place: object) -> Iterator[Record]:
        """Yield the records; at the end, raise a UserError that names `place` if there was none."""
        empty = True
        for record in records:
            empty = False
            yield record
        if empty:
            raise UserError(f"dataset {self.name}: {place} has no image{passed_over(self.ignored, self.left_out)}")

    def sources(self) -> Iterator[SourceFile]:
        """List the files from which the dataset is read; none, unless a layout says otherwise."""
        return iter(())

    def source_of(self, record: Record) -> str:
        """Return the name in `sources` of the file that holds an image's bytes."""
        return record.path


class LocalLayout(Layout):
    """A dataset in a folder or file of this machine.

    Args:
        root: The folder or file, a path or a `file://` URI; "~" is expanded.

    Attributes:
        needs: The contents that a root folder must have, for messages.
        root: The absolute root, for workers with another current folder.

    Raises:
        UserError: No root is given, or it is not on this machine, does not exist, or has a path that is not UTF-8.
    """

    needs: tuple[str, ...] = ()

    def __init__(self, root: str | Path | None):
        super().__init__()
        if root is None:
            raise UserError(f"dataset {self.name} needs a root: the folder or file that holds it")
        path = local_path(str(root)) if is_uri(root) else root
        if path is None:
            raise UserError(f"dataset {self.name} needs a local path; {root} can be read by folder and table")
        self.root = expanded(path).absolute()
        if not self.root.exists():
            raise UserError(f"dataset {self.name}: {self.root} does not exist")
        if not self.can_name(str(self.root)):
            raise UserError(
                f"dataset {self.name}: {self.ignored[0][0]} is no UTF-8 path; rename the folder or link to it"
            )

    def read(self, record: Record) -> bytes:
        """Return the file's bytes; raise OSError if it is missing, no plain file, or cannot be read."""
        check_plain(record.path)
        return Path(record.path).read_bytes()

    def sources(self) -> Iterator[SourceFile]:
        """List all files below the root, or the one that it is, except hidden ones.

        Raises:
            UserError: A folder cannot be listed for another reason than its permissions.
        """
        if not self.root.is_dir():
            yield file_at(self.root.name, self.root)
            return
        for name, entry in walk(self.root, self.pass_over):
            if not is_hidden(name):
                yield file_at(printable(name), entry)

    def source_of(self, record: Record) -> str:
        """Return the path of the file that holds an image's bytes, relative to the root."""
        return printable(record.path.removeprefix(f"{self.root}/")) if self.root.is_dir() else self.root.name

    def pass_over(self, error: OSError) -> None:
        """Pass over a folder because of its permissions.

        Other errors are raised, so that a disk that is unavailable for a moment does not cost a part of the images.
        """
        if not isinstance(error, PermissionError):
            raise UserError(
                f"dataset {self.name}: {printable(str(error.filename))} cannot be listed: {error.strerror or error}; "
                "fix that and run again"
            ) from error

    def require(self, *parts: str) -> None:
        """Raise a UserError that names the first of these sub-folders or files that the root does not have."""
        for part in parts:
            if not (self.root / part).exists():
                hint = remedy(self.root, parts, self.name) or f"it needs {', '.join(self.needs)}"
                raise UserError(f"dataset {self.name}: {self.root} has no {part}; {hint}")


class FolderLayout(LocalLayout):
    """A dataset whose images are files below a root folder.

    Args:
        root: The dataset's folder, a path or a `file://` URI; "~" is expanded.

    Raises:
        UserError: No root is given, or it is not a folder.
    """

    def __init__(self, root: str | Path | None):
        super().__init__(root)
        if not self.root.is_dir():
            raise UserError(f"dataset {self.name}: {self.root} is a file; give the folder that holds the images")

    def require_images(self, records: Sequence[Record], places: Mapping[str, tuple[str, ...]]) -> None:
        """Raise a UserError that names the first split without a record, and what its files were passed over for.

        Args:
            records: All records.
            places: The folders or lists of each split, with which the paths of files that are noted begin.
        """
        present = {record.split for record in records}
        for split, starts in places.items():
            if split not in present:
                own = [file for file in self.ignored if file[0].startswith(starts)]
                others = {reason: file for reason, file in self.left_out.items() if file[1].startswith(starts)}
                why = passed_over(own, others) or f" (there is nothing in {', '.join(filter(None, starts)) or 'it'})"
                raise UserError(f"dataset {self.name}: {self.root} has no image of split {split!r}{why}")

    def leave_out_unlisted(self, records: Sequence[Record], *folders: str) -> None:
        """Count the files in some folders of a dataset with lists that are no image of any list.

        Args:
            records: All records; their keys are paths below the root.
            folders: The folders, relative to the root.
        """
        listed = {normpath(record.key) for record in records}
        for folder in folders:
            for name, _ in walk(self.root / folder, self.pass_over):
                path = f"{folder}/{name}"
                if path not in listed:
                    unread = is_hidden(path) or not is_named_image(path)
                    self.leave_out(path, kind_by_name(path) if unread else "image that no list names")
