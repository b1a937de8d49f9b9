"""Any folder of images, without labels: a pool such as LUPerson."""

import os
from collections.abc import Iterator
from pathlib import Path

from rayreid.data.datasets.layout import FolderLayout
from rayreid.data.datasets.place import is_uri, local_path
from rayreid.data.datasets.remote import RemoteFolder
from rayreid.data.images import SUFFIXES
from rayreid.data.store import Record


def open_folder(root: str | Path | None) -> "Folder | RemoteFolder":
    """Open a folder of images, on this machine or, where the root is a URI such as `s3://bucket/pool`, elsewhere.

    Raises:
        UserError: The folder is missing or cannot be reached.
    """
    if not is_uri(root):
        return Folder(root)
    path = local_path(str(root))
    return RemoteFolder(str(root)) if path is None else Folder(path)


class Folder(FolderLayout):
    """All images below a folder: split pool, identity and camera unknown; the key is the relative path.

    Links to folders are followed, each folder once.

    Args:
        root: The folder.

    Raises:
        UserError: The folder is missing.
    """

    name = "folder"

    def records(self) -> Iterator[Record]:
        """List the images, folder by folder: a folder's images by name, then its sub-folders by name.

        Only one folder's names are held in memory at a time.

        Raises:
            UserError: In the end, if there was none.
        """
        self.ignored = []
        return self.at_least_one(self._walk(), self.root)

    def _walk(self) -> Iterator[Record]:
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
            for file in sorted(files):
                key = prefix + file
                if os.path.splitext(file)[1].lower() in SUFFIXES and self.can_name(key):  # noqa: PTH122  (Path is slow for millions)
                    yield Record(key, -1, -1, "pool", os.path.join(folder, file))  # noqa: PTH118

    def _ignore_folder(self, error: OSError) -> None:
        self.ignore(str(error.filename), "folder cannot be read")
