"""MSMT17 (Wei et al., CVPR 2018), in both of its editions.

    V1: train/  test/        V2 (faces masked): mask_train_v2/  mask_test_v2/
    list_train.txt  list_val.txt  list_query.txt  list_gallery.txt
        0000/0000_000_01_0303morning_0008_0.jpg 0

A line has a file below the train or test folder and its identity; the third field of the file name is the camera. Lists
may lack the suffix, separate file and identity by a tab, begin a file with its folder, or write backslashes.
Identities of train and test are numbered separately, both from 0. The train split is list_train + list_val (32,621
images, 1,041 identities), as the field uses it. The results of the editions differ by several points of mAP: never
compare them.
"""

import re
from pathlib import Path, PurePosixPath

from rayreid.data.datasets.layout import FolderLayout, refusal
from rayreid.data.store.shards import Record
from rayreid.errors import UserError

FOLDERS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
LISTS = (  # list, position of its folder in FOLDERS, split
    ("list_train", 0, "train"),
    ("list_val", 0, "train"),
    ("list_query", 1, "query"),
    ("list_gallery", 1, "gallery"),
)
PLACES = {"train": ("list_train", "list_val"), "query": ("list_query",), "gallery": ("list_gallery",)}
NAME = re.compile(r"[^_]+_[^_]+_(\d{1,4})_.+")


class MSMT17(FolderLayout):
    """MSMT17: splits train, query and gallery; keys such as "test/0000/0000_000_01_0303morning_0008_0.jpg".

    Args:
        root: The folder that contains the two image folders and the four lists.
        version: "V1" or "V2", needed only if the root contains both; else it is detected.

    Attributes:
        version: "V1" or "V2".

    Raises:
        UserError: The folder is missing or has another layout, or it contains both editions and none is chosen.
    """

    name = "msmt17"
    needs = ("train + test or mask_train_v2 + mask_test_v2", *(f"{name}.txt" for name, _, _ in LISTS))

    def __init__(self, root: str | Path | None, version: str | None = None):
        super().__init__(root)
        if version is not None and version not in FOLDERS:
            raise UserError(f"dataset msmt17: there is no version {version!r}; valid: V1, V2")
        self.version = version or self._detect()
        self.require(*FOLDERS[self.version], *(self._list(name) for name, _, _ in LISTS))

    def _list(self, name: str) -> str:
        """Return the file name of a list, which may lack its suffix."""
        return next((file for file in (f"{name}.txt", name) if (self.root / file).is_file()), f"{name}.txt")

    def _detect(self) -> str:
        found = [version for version, (train, _) in FOLDERS.items() if (self.root / train).is_dir()]
        if len(found) > 1:
            raise UserError(f"dataset msmt17: {self.root} holds V1 and V2; set the option version")
        return found[0] if found else "V1"

    def records(self) -> list[Record]:
        """List the images that the four lists name, sorted by key; others in their folders are left out and counted.

        Raises:
            UserError: A split has no image.
        """
        self.ignored, self.left_out = [], {}
        records = []
        for name, position, split in LISTS:
            folder, file = FOLDERS[self.version][position], self._list(name)
            for line in self._lines(file):
                record = self._record(line, folder, split)
                if isinstance(record, Record):
                    records.append(record)
                else:
                    self.ignore(f"{file}: {line}", record)
        self.require_images(records, PLACES)
        self.leave_out_unlisted(records, *FOLDERS[self.version])
        return sorted(records, key=lambda record: record.key)

    def _lines(self, file: str) -> list[str]:
        try:
            text = (self.root / file).read_text("utf-8-sig", errors="replace")
        except OSError as error:
            raise UserError(f"dataset msmt17: {self.root / file} cannot be read: {error.strerror or error}") from error
        return [line.strip() for line in text.splitlines() if line.strip()]

    def _record(self, line: str, folder: str, split: str) -> Record | str:
        """Return the image that a line names, or the reason why it names none."""
        written, pid = [*line.rsplit(None, 1), ""][:2]
        file = written.replace("\\", "/").removeprefix("./").removeprefix(f"{folder}/")
        camera = NAME.fullmatch(PurePosixPath(file).name)
        if not camera or not re.fullmatch(r"\d{1,9}", pid):
            return "no line of file and identity"
        if reason := refusal(file):
            return reason
        return Record(f"{folder}/{file}", int(pid), int(camera[1]), split, str(self.root / folder / file))
