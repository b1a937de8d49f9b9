"""A folder of images in an object store."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from posixpath import join

from pyarrow.fs import FileInfo, FileSystem, FileType

from rayreid.data.datasets.layout import Layout
from rayreid.data.datasets.place import Place
from rayreid.data.images import SUFFIXES
from rayreid.data.store.shards import Record
from rayreid.errors import UserError


class RemoteFolder(Layout):
    """All images below a folder of any of pyarrow's filesystems; the counterpart of `Folder` for this machine.

    Args:
        root: The URI, such as `s3://bucket/pool` or `gs://bucket/pool`.
        filesystem: A filesystem to use instead of the one that the URI names.

    Raises:
        UserError: The folder is missing or cannot be reached.
    """

    name = "folder"

    def __init__(self, root: str, filesystem: FileSystem | None = None):
        super().__init__()
        self._place = Place(root, filesystem)
        if self._place.kind() != FileType.Directory:
            raise UserError(f"dataset folder: the folder {self._place} does not exist")

    def records(self) -> Iterator[Record]:
        """List the images, folder by folder: a folder's images by name, then its sub-folders by name.

        Only the names of one folder are in memory at a time, in addition to those of folders still to be listed.

        Raises:
            UserError: A folder cannot be listed, or, at the end, there was no image.
        """
        self.ignored, self.left_out = [], {}
        return self.at_least_one(self._walk(), self._place)

    def read(self, record: Record) -> bytes:
        """Return the file's bytes; raise OSError if it cannot be read."""
        return self._place.read(record.path)

    def _walk(self) -> Iterator[Record]:
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            names = self._list(prefix)
            waiting += [f"{prefix}{name}/" for name in sorted(names, reverse=True) if names[name] == FileType.Directory]
            for name in sorted(names):
                if names[name] == FileType.File and PurePosixPath(name).suffix.lower() in SUFFIXES:
                    key = prefix + name
                    yield Record(key, -1, -1, "pool", join(self._place.path, key))

    def _list(self, prefix: str) -> dict[str, FileType]:
        """Return the direct contents of a folder, by name."""
        # A folder that cannot be listed ends the listing, so that a store that is unavailable for a moment does not
        # cost a part of the pool.
        infos = self._place.children(join(self._place.path, prefix).rstrip("/"))
        return {name: info.type for info in infos if (name := self._name(info, prefix)) is not None}

    def _name(self, info: FileInfo, prefix: str) -> str | None:
        try:
            return info.base_name
        except UnicodeDecodeError as error:
            name = error.object.rpartition(b"/")[2].decode("utf-8", "surrogateescape")
            self.ignore(prefix + name, "name is not UTF-8")
            return None
