"""Paths as tables and lists write them: relative or absolute, with slashes of either kind."""

import os
import posixpath
import re
from functools import lru_cache

from rayreid.data.datasets.layout import refusal
from rayreid.data.datasets.place import Place, is_uri, local_path
from rayreid.errors import UserError

MALFORMED = "a malformed URI"  # which may contain a password, so that it is not shown
_FOLDERS = 65_536  # number of folders remembered at a time
_DRIVE = re.compile(r"[A-Za-z]:/")


class WrittenPaths:
    """The paths that a table writes of the files below one folder.

    Args:
        root: The folder, on this machine or in an object store.
    """

    def __init__(self, root: Place):
        self._local = root.is_local
        self._root = root.path
        names = (
            [root.path, f"{root.address.partition('://')[0]}://{root.path}"] if is_uri(root.address) else [root.path]
        )
        self._starts = tuple(f"{name.rstrip('/')}/" for name in names)
        if self._local:
            self._real = os.path.realpath(root.path)
            self._leaves = lru_cache(_FOLDERS)(self._leads_out)
            self._below = lru_cache(_FOLDERS)(self._real_folder)

    def relative(self, path: str) -> str:
        """Return a path relative to the root, with forward slashes; as it is where it does not lie below the root.

        A backslash separates folders unless there is a file with the backslash in its name.
        """
        if "\\" in path and not (self._local and "\0" not in path and os.path.lexists(f"{self._root}/{path}")):
            path = path.replace("\\", "/")
        if path.startswith("/") or is_uri(path):
            return self._without_root(path)
        return path

    def refusal(self, path: str) -> str | None:
        """Return the reason to refuse a path that `relative` returned; None if its file may be read."""
        if (reason := refusal(path)) or _DRIVE.match(path):
            return reason or "outside its root"
        if not self._local:
            return None
        if path.startswith("file://"):
            return MALFORMED
        out = self._leaves(os.path.dirname(path))  # noqa: PTH120  (Path is slow for millions)
        if not out and os.path.islink(f"{self._root}/{path}"):  # noqa: PTH114
            out = self._leads_out(path)
        return "outside its root" if out else None

    def _without_root(self, path: str) -> str:
        if "\0" in path or ".." in path.split("/"):
            return path
        if self._local and path.startswith("file://"):
            try:
                path = local_path(path) or path
            except UserError:  # malformed; `refusal` says so
                return path
        for start in self._starts:
            if path.startswith(start):
                return path[len(start) :].lstrip("/")
        if self._local and path.startswith("/"):  # another name of the root, through a link
            folder, name = posixpath.split(path)
            below = self._below(folder)
            return path if below is None else posixpath.join(below, name)
        return path

    def _real_folder(self, folder: str) -> str | None:
        """Return the path of an absolute folder relative to the root; None if it does not lie below it."""
        real = os.path.realpath(folder)
        if real == self._real:
            return ""
        return real[len(self._real) + 1 :] if real.startswith(f"{self._real}/") else None

    def _leads_out(self, path: str) -> bool:
        real = os.path.realpath(f"{self._root}/{path}")
        return os.path.commonpath((self._real, real)) != self._real
