"""A folder of images in an object store."""

from collections.abc import Iterator
from posixpath import join

from pyarrow.fs import FileInfo, FileSystem, FileType

from rayreid.data.datasets.kinds import is_named_image, reason_by_bytes, reason_by_name
from rayreid.data.datasets.layout import Layout
from rayreid.data.datasets.place import Place
from rayreid.data.datasets.tree import is_hidden
from rayreid.data.signatures import HEAD_BYTES
from rayreid.data.store.shards import Record, reason_of
from rayreid.data.store.witness import SourceFile
from rayreid.errors import UserError, one_line


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
        return self.at_least_one(self._images(), self._place)

    def read(self, record: Record) -> bytes:
        """Return the file's bytes; raise OSError if it cannot be read."""
        return self._place.read(record.path)

    def sources(self) -> Iterator[SourceFile]:
        """List all files below the folder, except hidden ones.

        Raises:
            UserError: A folder cannot be listed.
        """
        for name, info in self._walk():
            if not is_hidden(name):
                yield SourceFile(name, info.size or 0, info.mtime_ns or 0)

    def source_of(self, record: Record) -> str:
        """Return the path of the file that holds an image's bytes, relative to the root."""
        return record.key

    def _images(self) -> Iterator[Record]:
        for key, info in self._walk():
            reason = reason_by_name(key)
            if reason is None and not is_named_image(key):
                reason = self._no_image(info.path)
            if reason is None:
                yield Record(key, -1, -1, "pool", join(self._place.path, key))
            else:
                self.leave_out(key, reason)

    def _no_image(self, path: str) -> str | None:
        """Return why a file whose name does not say so is no image, by its first bytes; None if it is one."""
        try:
            return reason_by_bytes(self._place.read(path, HEAD_BYTES))
        except OSError as error:
            if (reason := reason_of(error)) is not None:
                return reason
            raise UserError(f"dataset folder: {path} cannot be read: {one_line(error, 'all')}") from error

    def _walk(self) -> Iterator[tuple[str, FileInfo]]:
        """Yield all files by their keys, folder by folder."""
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            found = self._list(prefix)
            waiting += [
                f"{prefix}{name}/" for name in sorted(found, reverse=True) if found[name].type == FileType.Directory
            ]
            yield from ((prefix + name, found[name]) for name in sorted(found) if found[name].type == FileType.File)

    def _list(self, prefix: str) -> dict[str, FileInfo]:
        """Return the direct contents of a folder, by name."""
        # A folder that cannot be listed ends the listing, so that a store that is unavailable for a moment does not
        # cost a part of the pool.
        infos = self._place.children(join(self._place.path, prefix).rstrip("/"))
        return {name: info for info in infos if (name := self._name(info, prefix)) is not None}

    def _name(self, info: FileInfo, prefix: str) -> str | None:
        try:
            return info.base_name
        except UnicodeDecodeError as error:
            name = error.object.rpartition(b"/")[2].decode("utf-8", "surrogateescape")
            self.ignore(prefix + name, "name is not UTF-8")
            return None
