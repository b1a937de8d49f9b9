"""Several labelled datasets as one target. The paper trains its target proxy on MSMT17 and Market-1501 together."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rayreid.data.datasets import Dataset, open_dataset
from rayreid.data.datasets.layout import Layout
from rayreid.data.datasets.place import is_uri
from rayreid.data.datasets.without_cameras import WithoutCameras
from rayreid.data.store.shards import MissingImageError, Record
from rayreid.data.store.witness import SourceFile
from rayreid.errors import UserError
from rayreid.paths import data_path

FIELDS = ("dataset", "root", "options", "cameras")
_KEY = re.compile(r"(\d+)-[^/]*/(.*)", re.DOTALL)


class Combined(Layout):
    """The images of several datasets, with keys such as "0-msmt17/train/0000/0000_000_01_0303morning_0008_0.jpg".

    The identities and cameras of each part are shifted beyond those of the parts before it, by one more than their
    highest number over all splits; −1 stays. Differences within a part are therefore kept, and no two parts share a
    number.

    Args:
        root: None, because each part has its own root.
        parts: Two or more datasets, each `{dataset, root, options, cameras}`; a relative root is resolved as for any
            dataset.
        test: Number of the part, from 0, whose query and gallery are kept; None keeps those of all parts.

    Attributes:
        version: Names and versions of the parts.

    Raises:
        UserError: A part cannot be opened, or its description is invalid.
    """

    name = "combined"

    def __init__(
        self, root: str | None = None, parts: Sequence[Mapping[str, Any]] | None = None, test: int | None = None
    ):
        super().__init__()
        if root is not None:
            raise UserError("dataset combined has no root of its own; give each of its parts a root")
        if not isinstance(parts, Sequence) or len(parts) < 2:
            raise UserError("dataset combined needs the option parts: a list of two or more {dataset, root, options}")
        if test is not None and (type(test) is not int or not 0 <= test < len(parts)):
            raise UserError(f"dataset combined: test is {test!r}; give the number of a part, 0 to {len(parts) - 1}")
        self._parts = [_open(number, part) for number, part in enumerate(parts)]
        self._test = test
        self.version = " + ".join(f"{part.name} {part.version}".strip() for part in self._parts)

    def records(self) -> Iterator[Record]:
        """List the images, part by part.

        Raises:
            UserError: A part raises it.
        """
        self.ignored, self.left_out, self.notes = [], {}, []
        first_pid = first_camid = 0
        for number, part in enumerate(self._parts):
            prefix = f"{number}-{part.name}/"
            highest_pid, highest_camid = first_pid - 1, first_camid - 1
            for record in part.records():
                pid = _moved(record.pid, first_pid)
                camid = _moved(record.camid, first_camid)
                highest_pid, highest_camid = max(highest_pid, pid), max(highest_camid, camid)
                if self._test in (None, number) or record.split not in ("query", "gallery"):
                    yield replace(record, key=prefix + record.key, pid=pid, camid=camid)
            self.ignored += [(prefix + path, reason) for path, reason in part.ignored]
            self.notes += [f"part {number}: {note}" for note in part.notes]
            for reason, (count, path) in part.left_out.items():
                before, first = self.left_out.get(reason, (0, prefix + path))
                self.left_out[reason] = (before + count, first)
            first_pid, first_camid = highest_pid + 1, highest_camid + 1

    def read(self, record: Record) -> bytes:
        """Return an image's encoded bytes; raise the part's OSError if the part cannot read it."""
        part, own = self._part_of(record)
        return part.read(own)

    def sources(self) -> Iterator[SourceFile]:
        """List the files of all parts."""
        for number, part in enumerate(self._parts):
            yield from (file._replace(name=f"{number}-{file.name}") for file in part.sources())

    def source_of(self, record: Record) -> str:
        """Return the name in `sources` of the file that holds an image's bytes."""
        part, own = self._part_of(record)
        return f"{self._parts.index(part)}-{part.source_of(own)}"

    def _part_of(self, record: Record) -> tuple[Dataset, Record]:
        """Return the part that an image belongs to, and the part's own record of it.

        Raises:
            MissingImageError: The key is of no part.
        """
        match = _KEY.fullmatch(record.key)
        if match is None or int(match[1]) >= len(self._parts):
            raise MissingImageError(f"no part of the combined dataset has {record.key!r}")
        return self._parts[int(match[1])], replace(record, key=match[2])


def _moved(number: int, first: int) -> int:
    return number if number < 0 else first + number


def _open(number: int, part: Any) -> Dataset:
    where = f"dataset combined: part {number}"
    if not isinstance(part, Mapping) or not isinstance(part.get("dataset"), str):
        raise UserError(f"{where} is {part!r}; give {{dataset, root, options}}")
    for field in part:
        if field not in FIELDS:
            raise UserError(f"{where} has no field {field!r}; valid: {', '.join(FIELDS)}")
    root, options, cameras = part.get("root"), part.get("options") or {}, part.get("cameras", "use")
    if not isinstance(options, Mapping):
        raise UserError(f"{where}: options are {options!r}; give names and values")
    if unnamed := [name for name in options if not isinstance(name, str)]:
        raise UserError(f"{where}: options have the name {unnamed[0]!r}, which is no text")
    if root is not None and not is_uri(root):
        root = str(data_path(str(root)))
    if part["dataset"] == "store":
        raise UserError(
            f"{where} is a store, whose images are not read again; give the dataset from which the store was made"
        )
    if cameras not in ("use", "ignore"):
        raise UserError(f"{where}: cameras is {cameras!r}; valid: use, ignore")
    dataset = open_dataset(part["dataset"], root, **options)
    return WithoutCameras(dataset) if cameras == "ignore" else dataset
