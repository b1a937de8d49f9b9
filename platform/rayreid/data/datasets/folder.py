"""Any folder of images without labels: a pool such as LUPerson."""

import os
from collections.abc import Iterator
from pathlib import Path

from rayreid.data.datasets.kinds import is_named_image, reason_by_bytes, reason_by_name
from rayreid.data.datasets.layout import FolderLayout
from rayreid.data.datasets.place import is_uri, local_path
from rayreid.data.datasets.remote import RemoteFolder
from rayreid.data.datasets.tree import fault_of, walk
from rayreid.data.signatures import HEAD_BYTES
from rayreid.data.store.shards import Record, reason_of
from rayreid.errors import UserError


def open_folder(root: str | Path | None) -> "Folder | RemoteFolder":
    """Open a folder of images, on this machine or, if the root is a URI such as `s3://bucket/pool`, elsewhere.

    Raises:
        UserError: The folder is missing or cannot be reached.
    """
    return RemoteFolder(str(root)) if is_uri(root) and local_path(str(root)) is None else Folder(root)


class Folder(FolderLayout):
    """All images below a folder: split pool, identity and camera unknown. The key is the relative path.

    Links to folders are followed, each folder once. Folders without read permission are ignored. A file is an image if
    its name says so (if its bytes then say otherwise, it is rejected), or else if its first bytes do; all others, and
    hidden ones, are left out and counted.

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
        self.ignored, self.left_out = [], {}
        return self.at_least_one(self._images(), self.root)

    def _images(self) -> Iterator[Record]:
        for key, entry in walk(self.root, self._ignore_folder):
            if (reason := reason_by_name(key)) is not None:
                self.leave_out(key, reason)
                continue
            named = is_named_image(key)
            fault = fault_of(entry)
            if fault is None and not named:
                fault = _no_image(entry)
            if fault is None and self.can_name(key):
                yield Record(key, -1, -1, "pool", entry.path)
            elif fault is not None:
                (self.ignore if named else self.leave_out)(key, fault)

    def _ignore_folder(self, error: OSError) -> None:
        self.pass_over(error)
        self.ignore(str(error.filename), "folder cannot be read")


def _no_image(entry: "os.DirEntry[str]") -> str | None:
    """Return why a file whose name does not say so is no image, by its first bytes; None if it is one.

    Raises:
        UserError: The storage does not answer.
    """
    try:
        with open(entry.path, "rb") as file:  # noqa: PTH123  (Path is slow for millions)
            return reason_by_bytes(file.read(HEAD_BYTES))
    except OSError as error:
        if (reason := reason_of(error)) is not None:
            return reason
        raise UserError(
            f"dataset folder: {entry.path} cannot be read: {error.strerror or error}; fix that and run again"
        ) from error
