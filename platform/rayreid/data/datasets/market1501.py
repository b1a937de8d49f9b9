"""Market-1501 (Zheng et al., ICCV 2015), and datasets with its layout.

    bounding_box_train/  query/  bounding_box_test/       0002_c1s1_000451_03.jpg

A file name contains identity, camera, sequence, frame and detection. Identity −1 (badly detected: junk) and 0000
(distractors) occur in `bounding_box_test` and keep these numbers.
"""

import re
from pathlib import Path

from rayreid.data.datasets.layout import FolderLayout
from rayreid.data.images import SUFFIXES
from rayreid.data.store.shards import Record

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
NAME = re.compile(r"(-1|\d{1,9})_c(\d{1,4})(?:s\d+)?_[\w.-]+")


class Market1501(FolderLayout):
    """Market-1501: splits train, query and gallery; keys such as "query/0001_c1s1_001051_00.jpg".

    Args:
        root: The folder that contains `bounding_box_train`, `query` and `bounding_box_test`.

    Raises:
        UserError: The folder is missing or has another layout.
    """

    name = "market1501"
    needs = tuple(FOLDERS)

    def __init__(self, root: str | Path | None):
        super().__init__(root)
        self.require(*FOLDERS)

    def records(self) -> list[Record]:
        """List the images of all three splits, sorted by key.

        Raises:
            UserError: A split has no image.
        """
        self.ignored = []
        records = []
        for folder, split in FOLDERS.items():
            for path in (self.root / folder).iterdir():
                if path.suffix.lower() not in SUFFIXES:
                    continue
                key = f"{folder}/{path.name}"
                match = NAME.fullmatch(path.name)
                if match:
                    records.append(Record(key, int(match[1]), int(match[2]), split, str(path)))
                else:
                    self.ignore(key, "name without identity and camera")
        self.require_images(records, *FOLDERS.values())
        self.ignored.sort()
        return sorted(records, key=lambda record: record.key)
