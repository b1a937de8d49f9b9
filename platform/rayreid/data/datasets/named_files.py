"""Labelled images in one folder per split, whose names hold identity and camera."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rayreid.data.datasets.kinds import is_named_image, kind_by_name
from rayreid.data.datasets.layout import FolderLayout
from rayreid.data.datasets.tree import is_hidden
from rayreid.data.store.shards import Record
from rayreid.errors import UserError

MARKET_NAME = re.compile(r"(?P<pid>-1|\d{1,9})_c(?P<camid>\d{1,4})(?:s\d+)?_[\w.-]+")
NO_LABELS = "name without identity and camera"
_WHOLE = re.compile(r"-?\d+")


@dataclass(frozen=True)
class _Found:
    key: str
    pid: str
    camid: str
    split: str
    path: str


class NamedFiles(FolderLayout):
    """Images whose names a regular expression with the groups `pid` and, optionally, `camid` tells apart.

    Args:
        root: The folder that contains the folders of the splits.

    Attributes:
        folders: Split of each folder, by the folder's path below the root; "." is the root itself.
        pattern: The expression. It must match the file's whole name, or, if it contains a slash, its whole path below
            the folder of its split; with the suffix or without it.
        deep: Whether images in sub-folders are read; otherwise they are ignored.

    Raises:
        UserError: The root or a folder is missing.
    """

    folders: Mapping[str, str]
    pattern: re.Pattern[str] = MARKET_NAME
    deep = True

    def __init__(self, root: str | Path | None):
        super().__init__(root)
        self._check()

    def records(self) -> list[Record]:
        """List the images of all splits, sorted by key.

        Identities and cameras keep their numbers. If one of them is no number, all are numbered from 0, in the order of
        their names; −1 stays.

        Raises:
            UserError: A split has no image, or a folder cannot be listed.
        """
        self.ignored, self.left_out = [], {}
        found = [image for folder, split in self.folders.items() for image in self._images(folder, split)]
        pids, camids = _numbers(image.pid for image in found), _numbers(image.camid for image in found)
        records = []
        for image in found:
            pid, camid = pids[image.pid], camids[image.camid]
            if -1 <= pid < 2**31 and -1 <= camid < 2**15:
                records.append(Record(image.key, pid, camid, image.split, image.path))
            else:
                self.ignore(image.key, "identity or camera out of range")
        self._finish(records)
        return sorted(records, key=lambda record: record.key)

    def _check(self) -> None:
        self._of_path = "/" in self.pattern.pattern.replace("[^/]", "")
        self.needs = tuple(self.folders)
        self.require(*self.folders)

    def _finish(self, records: list[Record]) -> None:
        self.ignored.sort()
        places: dict[str, tuple[str, ...]] = {}
        for folder, split in self.folders.items():
            places[split] = (*places.get(split, ()), "" if folder == "." else f"{folder}/")
        self.require_images(records, places)

    def _images(self, folder: str, split: str) -> Iterator[_Found]:
        """Yield the images of one folder, and note its other files."""
        for below, path in self._files(self.root / folder, folder):
            key = below if folder == "." else f"{folder}/{below}"
            if not self.can_name(key):
                continue
            if is_hidden(key) or not is_named_image(key):
                self.leave_out(key, kind_by_name(key))
            elif "/" in below and not self.deep:
                self.ignore(key, "in a sub-folder, which dataset pattern reads")
            elif (labels := self._labels(below)) is not None:
                yield _Found(key, *labels, split, str(path))
            else:
                self.ignore(key, self._why_not(below))

    def _labels(self, below: str) -> tuple[str, str] | None:
        """Return identity and camera as a name writes them; None if it has no identity, whose group may be optional."""
        name = below if self._of_path else below.rpartition("/")[2]
        match = self.pattern.fullmatch(os.path.splitext(name)[0]) or self.pattern.fullmatch(name)  # noqa: PTH122
        if match is None or not match["pid"]:
            return None
        return match["pid"], match.groupdict().get("camid") or "-1"

    def _why_not(self, below: str) -> str:
        if re.fullmatch(self.pattern.pattern, below.rpartition("/")[2], re.IGNORECASE):
            return f"{NO_LABELS}: its letters are capitals"
        return NO_LABELS

    def _files(self, folder: Path, own: str) -> Iterator[tuple[str, Path]]:
        """Yield the files below a folder, by their path below it; each folder once, also if links lead to it twice.

        Args:
            folder: The folder.
            own: Its path below the root; sub-folders that are themselves folders of a split are left to these.
        """
        visited: set[str] = set()
        for current, subfolders, files in os.walk(folder, followlinks=True, onerror=self._skip):
            real = os.path.realpath(current)
            relative = os.path.relpath(current, folder)
            below_root = os.path.normpath(Path(own, relative))
            if real in visited or (relative != "." and below_root in self.folders):
                subfolders.clear()
                continue
            visited.add(real)
            subfolders.sort()
            for file in sorted(files):
                yield (file if relative == "." else f"{relative}/{file}"), Path(current, file)

    def _skip(self, error: OSError) -> None:
        """Ignore a folder because of its permissions; storage that does not answer must not cost a part of the set."""
        if not isinstance(error, PermissionError):
            raise UserError(
                f"dataset {self.name}: {error.filename} cannot be listed: {error.strerror or error}; fix that and run "
                "again"
            ) from error
        self.ignore(os.path.relpath(error.filename, self.root), "folder cannot be read")


def _numbers(names: Iterable[str]) -> dict[str, int]:
    """Map identities or cameras to their numbers; if one of them is no number, to their rank."""
    known = set(names)
    if all(_WHOLE.fullmatch(name) for name in known):
        return {name: int(name) for name in known}
    return {"-1": -1, **{name: rank for rank, name in enumerate(sorted(known - {"-1"}))}}
