"""Any folder of images without labels: a pool such as LUPerson."""

import os
from collections.abc import Iterator
from pathlib import Path

from rayreid.data.datasets.layout import FolderLayout
from rayreid.data.datasets.place import is_uri, local_path
from rayreid.data.datasets.remote import RemoteFolder
from rayreid.data.images import SUFFIXES
from rayreid.data.store.shards import Record
from rayreid.errors import UserError


def open_folder(root: str | Path | None) -> "Folder | RemoteFolder":
    """Open a folder of images, on this machine or, if the root is a URI such as `s3://bucket/pool`, elsewhere.

    Raises:
        UserError: The folder is missing or cannot be reached.
    """
    return RemoteFolder(str(root)) if is_uri(root) and local_path(str(root)) is None else Folder(root)


class Folder(FolderLayout):
    """All images below a folder: split pool, identity and camera unknown. The key is the relative path.

    Links to folders are followed, each folder once. Folders without read permission are ignored.

    Args:
        root: The folder.

    Raises:
        UserError: The folder is missing.
    """

    name = "folder"

    def records(self) -> Iterator[Record]:
        """List the images, folder by folder: a folder's images by name, then its sub-folders by name.

        Only the names of one folder are in memory at a time.

        Raises:
            UserError: A folder cannot be listed for another reason than its permissions, or, at the end, there was no
                image.
        """
        self.ignored = []
        return self.at_least_one(self._walk(), self.root)

    def _walk(self) -> Iterator[Record]:
        visited: set[tuple[int, int]] = set()
        for folder, subfolders, files in os.walk(self.root, followlinks=True, onerror=self._skip):
            try:
                status = Path(folder).stat()
            except OSError as error:
                self._skip(error)
                subfolders.clear()
                continue
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

    def _skip(self, error: OSError) -> None:
        """Ignore a folder because of its permissions.

        Other errors are raised, so that a disk that is unavailable for a moment does not cost a part of the pool.
        """
        if not isinstance(error, PermissionError):
            raise UserError(
                f"dataset folder: {error.filename} cannot be listed: {error.strerror or error}; fix that and run again"
            ) from error
        self.ignore(str(error.filename), "folder cannot be read")
