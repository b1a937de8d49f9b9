"""The location of a dataset: a path of this machine, or a URI of one of pyarrow's filesystems."""

import copy
import posixpath
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from rayreid.data.datasets.tree import check_plain
from rayreid.data.store.shards import MissingImageError
from rayreid.errors import UserError, one_line
from rayreid.masking import holds_credentials, masked
from rayreid.paths import expanded

_RETRY, _RETRY_SECONDS = "retry_limit_seconds", 60  # Google's client would try for a quarter of an hour


def is_uri(root: str | Path | None) -> bool:
    """Return whether a root is a URI (`s3://bucket/pool`), not a path of this machine."""
    return isinstance(root, str) and "://" in root


def local_path(uri: str) -> str | None:
    """Return the path that a `file://` URI names; None for other URIs.

    Raises:
        UserError: The URI is malformed or contains a password.
    """
    _refuse_password(uri)
    return _connect(uri)[1] if uri.startswith("file://") else None


class Place:
    """A file or folder on a filesystem, which each process opens when it first needs it.

    Args:
        address: A path, or a URI such as `s3://bucket/pool`, `gs://bucket/pool` or `file:///pool`.
        filesystem: A filesystem to use instead of the one that the URI names; the scheme of the address is then
            ignored. It is pickled with the place.

    Attributes:
        path: The path on the filesystem.

    Raises:
        UserError: The URI is of no known kind or contains a password, or its store cannot be reached.
    """

    def __init__(self, address: str, filesystem: FileSystem | None = None):
        _refuse_password(address)
        self.address = address
        self._given = filesystem
        self._opened: FileSystem | None = None
        if filesystem is not None:
            self.path = address.partition("://")[2]
        elif is_uri(address):
            self._opened, self.path = _connect(address)
        else:
            self._given = LocalFileSystem()
            self.path = str(expanded(address).absolute())
        self.path = self.path.rstrip("/") or self.path

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __str__(self) -> str:
        return self.address

    @property
    def filesystem(self) -> FileSystem:
        """Return the filesystem, which is opened once per process."""
        if self._given is not None:
            return self._given
        if self._opened is None:
            self._opened = _connect(self.address)[0]
        return self._opened

    @property
    def is_local(self) -> bool:
        """Return whether the filesystem is that of this machine."""
        return isinstance(self.filesystem, LocalFileSystem)

    def kind(self) -> FileType:
        """Return whether the path is a file, a folder or nothing.

        Raises:
            UserError: The filesystem does not answer.
        """
        try:
            return self.filesystem.get_file_info(self.path).type
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self} cannot be reached: {one_line(error, 'all')}") from error

    def children(self, folder: str) -> list[FileInfo]:
        """Return the direct contents of a folder of the same filesystem.

        Raises:
            UserError: The folder cannot be listed.
        """
        try:
            return self.filesystem.get_file_info(FileSelector(folder))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self}: cannot list {folder}: {one_line(error, 'all')}") from error

    def folder(self, relative: str = "") -> Self:
        """Return the folder of this file, or a folder relative to it."""
        folder = copy.copy(self)
        folder.path = posixpath.normpath(posixpath.join(posixpath.dirname(self.path), relative))
        folder.address = self.address if is_uri(self.address) else folder.path
        return folder

    def read(self, path: str, count: int | None = None) -> bytes:
        """Return the bytes of a file of the same filesystem, or the first `count` of them.

        Raises:
            MissingImageError: The path is not a valid file name, or it is a folder or a pipe.
            OSError: The file is missing or cannot be read.
        """
        try:
            if self.is_local:
                check_plain(path)
            with self.filesystem.open_input_file(path) as file:
                return file.read(count)
        except pa.ArrowInvalid as error:
            raise MissingImageError(f"{path}: {one_line(error, 'all')}", "no file name") from error
        except pa.ArrowException as error:
            raise OSError(f"{path}: {one_line(error, 'all')}") from error
        except OSError as error:
            if self.is_local and Path(path).is_dir():  # for which pyarrow raises an unspecific error
                raise MissingImageError(one_line(error, "all"), "a folder") from error
            raise


def _refuse_password(address: str) -> None:
    """Raise a UserError if an address contains a password or a key: addresses are stored with the results."""
    if is_uri(address) and holds_credentials(address):
        raise UserError(
            f"{masked(address)}: take the password out of the URI, which is stored with the results; credentials come "
            "from the environment of the object store's own tools"
        )


def _connect(uri: str) -> tuple[FileSystem, str]:
    """Open a URI's filesystem.

    Raises:
        UserError: There is no filesystem of its kind, or it cannot be reached.
    """
    if uri.startswith(("gs://", "gcs://")) and _RETRY not in uri:
        uri += f"{'&' if '?' in uri else '?'}{_RETRY}={_RETRY_SECONDS}"
    try:
        filesystem, path = FileSystem.from_uri(uri)
    except (OSError, ImportError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{uri} cannot be opened: {one_line(error, 'all')}") from error
    if not path:
        raise UserError(f"{uri} names no bucket")
    return filesystem, path
