"""Any labelled tree: folders for the splits, and a pattern for the identity and camera in the files' names."""

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

from rayreid.data.datasets.layout import FolderLayout, refusal
from rayreid.data.datasets.market1501 import FOLDERS
from rayreid.data.datasets.named_files import NamedFiles
from rayreid.data.datasets.table import SPLITS
from rayreid.data.store.shards import Record
from rayreid.errors import UserError

GROUPS = ("pid", "camid")
_TOKEN = re.compile(r"\{(\w+)(?::(\d*)(d))?\}|(\*)|(\?)|(.)", re.DOTALL)


class Pattern(NamedFiles):
    """Labelled images whose names follow a pattern; keys are paths below the root.

    Args:
        root: The folder that contains the folders of the splits.
        pattern: A template such as "{pid:d}_c{camid:d}*", or a regular expression with the named groups `pid` and,
            optionally, `camid`. In a template `{pid:d}` stands for digits, `{pid:4d}` for four of them, `{pid}` for any
            text without a slash, `*` for any text and `?` for any character, both without a slash. With a slash, the
            pattern is that of the path below the folder of the split ("{pid}/*"), otherwise that of the name.
        folders: The split of each folder: {folder: train | query | gallery | pool}. By default Market-1501's.

    Raises:
        UserError: The root or a folder is missing, or an option has an invalid value.
    """

    name = "pattern"

    def __init__(self, root: str | Path | None, pattern: str | None = None, folders: Mapping[str, str] | None = None):
        FolderLayout.__init__(self, root)
        if not isinstance(pattern, str):
            raise UserError(
                "dataset pattern needs the option pattern, such as '{pid:d}_c{camid:d}*' or a regular expression with "
                "the named group pid"
            )
        self.pattern = compile_pattern(pattern)
        self.folders = _folders(FOLDERS if folders is None else folders)
        self._check()


class VeRi776(NamedFiles):
    """VeRi-776 (Liu et al., ECCV 2016): vehicles; names such as "0002_c002_00030600_0.jpg"."""

    name = "veri776"
    folders: Mapping[str, str] = {"image_train": "train", "image_query": "query", "image_test": "gallery"}


class CUHK01(NamedFiles):
    """CUHK01 (Li et al., ACCV 2012): `campus/0001001.png`, four digits of identity, three of image.

    Images 1 and 2 of an identity are by camera 1, images 3 and 4 by camera 2. The dataset comes without a division.
    Here the first identities train; of the others, camera 1 gives the queries and camera 2 the gallery.

    Args:
        root: The folder that contains `campus`.
        train: Number of the last identity that trains; published results use 485 or 871 of 971.
    """

    name = "cuhk01"
    folders: Mapping[str, str] = {"campus": "train"}
    pattern = re.compile(r"(?P<pid>\d{4})(?P<camid>00[1-4])")

    def __init__(self, root: str | Path | None, train: int = 485):
        super().__init__(root)
        if type(train) is not int or train < 0:
            raise UserError(f"dataset cuhk01: train is {train!r}; give the number of the last identity that trains")
        self._train = train

    def records(self) -> list[Record]:
        """List the images of all three splits, sorted by key."""
        return [self._divided(record) for record in super().records()]

    def _divided(self, image: Record) -> Record:
        camera = (image.camid + 1) // 2
        split = "train" if image.pid <= self._train else ("query", "gallery")[camera - 1]
        return Record(image.key, image.pid, camera, split, image.path)


class Occluded(NamedFiles):
    """Occluded-REID (Zhuo et al., ICME 2018): `occluded_body_images/001/001_01.tif`; query and gallery, no train split.

    Cameras are not known. Evaluate on it as the test part of a `combined` dataset. (Occluded-Duke has Market-1501's
    layout.)
    """

    name = "occluded"
    folders: Mapping[str, str] = {"occluded_body_images": "query", "whole_body_images": "gallery"}
    pattern = re.compile(r"(?P<pid>\d{1,9})/[^/]+")


def compile_pattern(text: str) -> re.Pattern[str]:
    """Return the regular expression of a template, or of an expression with named groups.

    Raises:
        UserError: The expression is invalid, or has no group `pid`, or others than `GROUPS`.
    """
    try:
        pattern = re.compile(text if "(?P<" in text else _translated(text))
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"dataset pattern: {text!r} is no valid pattern: {error}") from error
    unknown = [name for name in pattern.groupindex if name not in GROUPS]
    if unknown or "pid" not in pattern.groupindex:
        found = f"has the field {unknown[0]!r}" if unknown else "has no field pid"
        raise UserError(
            f"dataset pattern: {text!r} {found}; the fields are {', '.join(GROUPS)}, of which pid is needed"
        )
    return pattern


def _translated(template: str) -> str:
    parts = []
    for field, width, digits, star, mark, character in _TOKEN.findall(template):
        if field and digits:
            sign = "-?" if field == "pid" and not width else ""
            parts.append(rf"(?P<{field}>{sign}\d{{{width}}})" if width else rf"(?P<{field}>{sign}\d+)")
        elif field:
            parts.append(f"(?P<{field}>[^/]+?)")
        else:
            parts.append("[^/]*" if star else "[^/]" if mark else re.escape(character))
    return "".join(parts)


def _folders(folders: object) -> dict[str, str]:
    if not isinstance(folders, Mapping) or not folders:
        raise UserError("dataset pattern: folders is no mapping; give {FOLDER: train, FOLDER: query, …}")
    checked: dict[str, str] = {}
    for folder, split in folders.items():
        name = str(folder).replace("\\", "/").strip("/") or "."
        if split not in SPLITS or refusal(name):
            raise UserError(
                f"dataset pattern: folders has {folder!r}: {split!r}; give a folder below the root and one of "
                f"{', '.join(SPLITS)}"
            )
        name = posixpath.normpath(name)
        if name in checked:
            raise UserError(
                f"dataset pattern: folders has {name!r} twice, the second time as {folder!r}; keep one of them"
            )
        checked[name] = str(split)
    return checked
