"""Ordered file lists, such as the published CFS_list.pkl: reading them and finding their images in a store."""

import codecs
import csv
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from rayreid.data.datasets.place import Place
from rayreid.data.datasets.table_file import MISSING, TableFile, as_text, ends_within_quotes
from rayreid.data.images import SUFFIXES
from rayreid.errors import UserError, one_line

HEADINGS = ("key", "path", "file", "filename", "image", "name")
"""Column names that mark a CSV's first row as a heading; the column with such a name is the list."""

Keys = Sequence[str] | npt.NDArray[np.object_]
"""Keys of images: a list, or the object array of a store."""

AMBIGUOUS = -1
"""Stands in place of a row for a path that several keys end with."""


def read_list(path: Path) -> list[str]:
    """Return the entries of a file list, best first.

    Args:
        path: `.txt`: one entry per line. `.csv`, `.tsv`, `.parquet`: the column headed key, path, file, filename, image
            or name, or else (not of Parquet) the first column. `.pkl`: a pickled list of strings; nothing else in the
            file is loaded, let alone executed.

    Raises:
        UserError: The file is missing, of another kind, unreadable or empty.
    """
    readers = {
        ".txt": _read_text,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
        ".pkl": _read_pickle,
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: a file list ends in {', '.join(readers)}, not {path.suffix!r}")
    try:
        entries = readers[path.suffix.lower()](path)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path}: the file list cannot be read: {one_line(error, 'all')}") from error
    if not entries:
        raise UserError(f"{path}: the file list is empty")
    return entries


def _lines(path: Path) -> list[str]:
    """Return the lines of a text in UTF-8, or in UTF-16 if it says so."""
    with path.open("rb") as file:
        start = file.read(2)
    encoding = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    with path.open(newline="", encoding=encoding) as file:
        return list(file)


def _read_text(path: Path) -> list[str]:
    return [line.strip() for line in "".join(_lines(path)).splitlines() if line.strip()]


def _read_csv(path: Path) -> list[str]:
    lines = _lines(path)
    separator = _separator(lines[0] if lines else "")
    cells = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    rows = [row for row in cells if any(cell.strip() for cell in row)]
    broken = next(
        (number for number, row in enumerate(rows, 1) if any("\n" in cell or "\r" in cell for cell in row)), 0
    )
    if broken or (lines and ends_within_quotes(lines[-1], separator)):
        raise UserError(f"{path}: row {broken or len(rows)} has a quote that is not closed, or a line break in a cell")
    if not rows:
        return []
    column = _listed_column(rows[0])
    body = rows if column is None else rows[1:]
    entries = [row[column or 0].strip() if len(row) > (column or 0) else "" for row in body]
    absent = next((number for number, entry in enumerate(entries) if entry.lower() in MISSING), None)
    if absent is not None:
        raise UserError(f"{path}: row {absent + len(rows) - len(body) + 1} names no file")
    return entries


def _separator(heading: str) -> str:
    """Return the separator at which a first line has a name of `HEADINGS`, or else an image; by default a comma."""
    separators = [separator for separator in ",;\t|" if separator in heading]
    cut = {separator: [cell.strip().strip('"') for cell in heading.split(separator)] for separator in separators}
    named = (separator for separator in separators if _listed_column(cut[separator]) is not None)
    image = (separator for separator in separators if _without_suffix(cut[separator][0]) != cut[separator][0])
    return next(named, next(image, ","))


def _listed_column(heading: Sequence[str]) -> int | None:
    names = [cell.strip().lower() for cell in heading]
    return next((names.index(name) for name in HEADINGS if name in names), None)


def _read_parquet(path: Path) -> list[str]:
    file = TableFile(Place(str(path)), HEADINGS, "file list")
    if not file.columns:
        raise UserError(f"{path}: the file list has no column {', '.join(HEADINGS)}; only {', '.join(file.headings)}")
    entries = [entry for batch in file.batches() for entry in as_text(batch.column(0)).to_pylist()]
    if None in entries:
        raise UserError(f"{path}: row {entries.index(None) + 1} (the heading not counted) names no file")
    return entries


class _ListUnpickler(pickle.Unpickler):
    """Unpickler that loads only built-in values (lists, strings, numbers) and refuses every class and function."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_pickle(path: Path) -> list[str]:
    with path.open("rb") as file:
        try:
            entries: Any = _ListUnpickler(file).load()
        except Exception as error:  # a corrupt pickle can raise almost anything
            why = one_line(error, "all")
            raise UserError(f"{path}: refused, not a plain pickled list of strings: {why}") from error
    if not isinstance(entries, list) or not all(type(entry) is str for entry in entries):
        raise UserError(f"{path}: refused, the pickle holds something else than a list of strings")
    return entries


@dataclass(frozen=True)
class ListMatch:
    """The match of a list's entries with the images of a store.

    Attributes:
        rows: Index rows of the store in the list's order, each once, int64 (M,).
        entries: Number of entries in the list.
        matched: Number of entries that name an image of the store (M plus repeated entries).
        ambiguous: Number of entries that could name several images; these are not matched.
        respelt: Number of matched entries that differ from the key in the image suffix: "a.jpg" for "a".
    """

    rows: npt.NDArray[np.int64]
    entries: int
    matched: int
    ambiguous: int
    respelt: int = 0


def match_entries(entries: Sequence[str], keys: Keys) -> ListMatch:
    """Match a list's entries to a store's keys by path suffix.

    An entry names an image if the entry's path ends with the key (a list with the author's folders in front), or if
    the key, and no other key, ends with the entry (a list relative to a deeper folder). The longest match wins. An
    entry without a match is compared again without image suffixes: LUPerson's LMDB has the key "00_00_0000_00000001"
    for "00_00_0000_00000001.jpg" in the published CFS list.

    Args:
        entries: Paths, best first.
        keys: The N keys of the store, unique.

    Raises:
        UserError: Fewer than half of the entries match.
    """
    paths = _Paths([_components(str(key)) for key in keys])
    found = [paths.find(_components(entry)) for entry in entries]
    matched = sum(row not in (None, AMBIGUOUS) for row in found)
    ambiguous = found.count(AMBIGUOUS)
    if 2 * matched < len(entries):
        unclear = f" ({ambiguous} would match several)" if ambiguous else ""
        raise UserError(
            f"only {matched} of the file list's {len(entries)} entries{unclear} are images of this store; "
            f"its first is {entries[0]!r}, the store's first {str(keys[0]) if len(keys) else None!r}: "
            "is it this store's list?"
        )
    rows = list(dict.fromkeys(row for row in found if row not in (None, AMBIGUOUS)))
    return ListMatch(np.array(rows, dtype=np.int64), len(entries), matched, ambiguous, paths.respelt)


def _components(path: str) -> str:
    """Return the path with single forward slashes and without `.`: `.\\a//b.jpg` → `a/b.jpg`."""
    if "\\" not in path and "//" not in path and "./" not in path and not path.startswith("/"):
        return path
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def _without_suffix(path: str) -> str:
    stem, suffix = os.path.splitext(path)  # noqa: PTH122  (Path is slow for millions)
    return stem if suffix.lower() in SUFFIXES else path


class _Paths:
    """Index that finds a path as it is written, or else without its image suffix.

    Attributes:
        respelt: Number of paths that were found only without their suffix.
    """

    def __init__(self, paths: Sequence[str]):
        self._paths = paths
        self._written = _Suffixes(paths)
        self.respelt = 0

    def find(self, entry: str) -> int | None:
        """Return the row of the entry's image, `AMBIGUOUS`, or None."""
        row = self._written.find(entry)
        if row is not None:
            return row
        row = self._stems.find(_without_suffix(entry))
        self.respelt += row not in (None, AMBIGUOUS)
        return row

    @cached_property
    def _stems(self) -> "_Suffixes":
        return _Suffixes([_without_suffix(path) for path in self._paths])


class _Suffixes:
    """Index that finds a path by its suffix, or by a suffix of the path asked for."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths
        self.whole: dict[str, int] = {}
        for row, path in enumerate(paths):
            self.whole[path] = AMBIGUOUS if path in self.whole else row
        self.tails: dict[int, dict[str, int]] = {}

    def find(self, entry: str) -> int | None:
        """Return the row of the entry's image, `AMBIGUOUS`, or None."""
        row = self.whole.get(entry)
        if row is None:
            row = self._ending(entry.count("/") + 1).get(entry)
        while row is None and entry:
            entry = entry.partition("/")[2]
            row = self.whole.get(entry)
        return row

    def _ending(self, depth: int) -> dict[str, int]:
        """Map the last `depth` components of every longer path to its row; computed once per depth."""
        if depth not in self.tails:
            tails = self.tails[depth] = {}
            for row, path in enumerate(self.paths):
                if path.count("/") >= depth:
                    tail = "/".join(path.rsplit("/", depth)[1:])
                    tails[tail] = AMBIGUOUS if tail in tails else row
        return self.tails[depth]
