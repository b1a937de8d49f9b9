"""CUHK03 (Li et al., CVPR 2014) in its new protocol of 767 and 700 identities (Zhong et al., CVPR 2017).

    images_detected/  images_labeled/                      1_001_1_01.png
    splits_new_detected.json  splits_new_labeled.json      [{"train": [[path, pid, camid], …], "query": …, …}]

This is how the field's converters unpack the published MAT file. The paths are those of the machine on which that was
done, so only the file names count. Cameras are numbered from 0 (the two of a pair). Train identities are numbered from
0, separately from those of query and gallery. Detected and hand-labelled boxes are different sets: never compare
results across them. (The same protocol in folders `bounding_box_train`, … has the layout `market1501`.)
"""

import json
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from rayreid.data.datasets.layout import FolderLayout, refusal
from rayreid.data.images import SUFFIXES
from rayreid.data.store.shards import Record
from rayreid.errors import UserError

SPLITS = ("train", "query", "gallery")


class CUHK03(FolderLayout):
    """CUHK03, new protocol: splits train, query and gallery; keys such as "images_detected/1_001_1_01.png".

    Args:
        root: The folder with the image folder and the splits file of the kind.
        kind: "detected" or "labeled": whether the boxes come from a detector or were drawn by hand.

    Attributes:
        version: The kind.

    Raises:
        UserError: The folder is missing or has another layout.
    """

    name = "cuhk03"

    def __init__(self, root: str | Path | None, kind: Literal["detected", "labeled"] = "detected"):
        super().__init__(root)
        if kind not in ("detected", "labeled"):
            raise UserError(f"dataset cuhk03: there is no kind {kind!r}; valid: detected, labeled")
        self.version = kind
        self._folder, self._splits = f"images_{kind}", f"splits_new_{kind}.json"
        self.needs = (self._folder, self._splits)
        if not (self.root / self._splits).exists() and (mat := sorted(self.root.glob("*.mat"))):
            raise UserError(
                f"dataset cuhk03: {self.root} has the MAT file {mat[0].name}, not yet the images; unpack it to "
                f"{self._folder} and {self._splits}, as the field's converters do (torchreid's dataset cuhk03 is one)"
            )
        self.require(*self.needs)

    def records(self) -> list[Record]:
        """List the images that the splits file names, sorted by key; others in the folder are left out and counted.

        Raises:
            UserError: The file cannot be read, or a split has no image.
        """
        self.ignored, self.left_out = [], {}
        splits = self._read_splits()
        records = [record for split in SPLITS for row in splits[split] if (record := self._record(split, row))]
        self.require_images(records, dict.fromkeys(SPLITS, (f"{self._splits}: ",)))
        self.leave_out_unlisted(records, self._folder)
        return sorted(records, key=lambda record: record.key)

    def _read_splits(self) -> dict[str, list[Any]]:
        file = self.root / self._splits
        try:
            splits = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"dataset cuhk03: {file} cannot be read: {error}") from error
        if isinstance(splits, list) and len(splits) == 1:
            splits = splits[0]
        if not isinstance(splits, dict) or not all(isinstance(splits.get(split), list) for split in SPLITS):
            raise UserError(f"dataset cuhk03: {file} is not one division into lists {', '.join(SPLITS)}")
        return splits

    def _record(self, split: str, row: Any) -> Record | None:
        match row:
            case [str(path), int(pid), int(camid)] if 0 <= pid < 2**31 and 0 <= camid < 2**15:
                name = PureWindowsPath(path).name  # accepts both kinds of slashes
                if PureWindowsPath(name).suffix.lower() in SUFFIXES and not refusal(name):
                    key = f"{self._folder}/{name}"
                    return Record(key, pid, camid, split, str(self.root / key)) if self.can_name(key) else None
            case [str(), str(), _] | [str(), _, str()]:
                self.ignore(f"{self._splits}: {row}", "identity or camera is text; write it as a number")
                return None
        self.ignore(f"{self._splits}: {row}", "no row of image, identity and camera")
        return None
