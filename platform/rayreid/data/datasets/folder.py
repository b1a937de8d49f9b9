"""Any folder of images, without labels: a pool such as LUPerson."""

import os
from pathlib import Path

from rayreid.data.datasets.layout import FolderLayout
from rayreid.data.images import SUFFIXES
from rayreid.data.store import Record


class Folder(FolderLayout):
    """All images below a folder: split pool, identity and camera unknown; the key is the relative path.

    Links to folders are followed, each folder once.

    Args:
        root: The folder.

    Raises:
        UserError: The folder is missing.
    """

    name = "folder"

    def records(self) -> list[Record]:
        """List the images, sorted by key.

        Raises:
            UserError: There is none.
        """
        self.ignored = []
        records: list[Record] = []
        visited: set[tuple[int, int]] = set()
        for folder, subfolders, files in os.walk(self.root, followlinks=True, onerror=self._ignore_folder):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in visited:
                subfolders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            subfolders.sort()  # which of two links to a folder is followed must not vary
            relative = os.path.relpath(folder, self.root)
            prefix = "" if relative == "." else Path(relative).as_posix() + "/"
            for file in files:
                if os.path.splitext(file)[1].lower() in SUFFIXES:  # noqa: PTH122  (Path is slow for millions)
                    self._add(records, prefix + file, os.path.join(folder, file))  # noqa: PTH118
        self.require_images(records, "pool")
        return sorted(records, key=lambda record: record.key)

    def _add(self, records: list[Record], key: str, path: str) -> None:
        try:
            key.encode()
        except UnicodeEncodeError:
            self.ignore(key, "name is not UTF-8")
        else:
            records.append(Record(key, -1, -1, "pool", path))

    def _ignore_folder(self, error: OSError) -> None:
        self.ignore(str(error.filename), "folder cannot be read")
