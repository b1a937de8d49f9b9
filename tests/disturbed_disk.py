"""A disk on which each operation can be the last one, can fail, or can be followed by a loss of power.

`Disk` stands between Python and the file system below one folder. It counts the operations that change something there
(creating, writing, syncing, renaming, linking, removing, making folders), and knows what of them is durable: the bytes
of a file when it was synced last, and the names in a folder when that was synced last. A `Disturbance` names an
operation and what happens at it.

What a loss of power leaves is any state that POSIX allows: bytes that were not synced are gone or cut, and names that
were not synced are the old ones or the new ones. A rename is never done by half. Of the names of one folder, a later
change may be durable and an earlier one not.
"""
# What stands below pathlib cannot use it.
# ruff: noqa: PTH100, PTH115, PTH117

import builtins
import errno
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

_REAL_OPEN = builtins.open
_UNIQUE = re.compile(r"[0-9a-f]{32}")
_NEEDS_ROOM = ("create", "write", "mkdir", "rename", "link", "sync")

Bytes = Literal["kept", "half", "lost"]
"""What a loss of power leaves of bytes that were not synced."""


@dataclass(frozen=True)
class Loss:
    """What a loss of power leaves.

    Attributes:
        content: What it leaves of bytes that were not synced.
        names: Function (folder, place, changes) → whether the change of a name in that place, among those of the folder
            that were not synced, is durable.
        folders: Whether folders that were made are always durable, so that something is left in them.
    """

    content: Bytes
    names: Callable[[str, int, int], bool]
    folders: bool = True


LOSSES = {
    "empty files": Loss("lost", lambda folder, place, changes: True),
    "cut files": Loss("half", lambda folder, place, changes: True),
    "old names": Loss("lost", lambda folder, place, changes: False, folders=False),
    "old names of files": Loss("lost", lambda folder, place, changes: False),
    "half of the names": Loss("half", lambda folder, place, changes: place < changes // 2),
    "newest name": Loss("kept", lambda folder, place, changes: place == changes - 1),
    "old names in upper folders": Loss("half", lambda folder, place, changes: folder.count("/") > 2),
    "old names in lower folders": Loss("kept", lambda folder, place, changes: folder.count("/") <= 2),
}

FAULTS = ("EIO", "ENOSPC")
"""The errors that an operation can end in."""


@dataclass(frozen=True)
class Disturbance:
    """What happens at one operation.

    Attributes:
        place: Number of the operation, from 0.
        kind: One of `FAULTS`, or "kill". "EIO" lets the operation fail; "ENOSPC" lets it and all later ones fail that
            need room. "kill" kills this process by SIGKILL before the operation, or in the middle of a write.
    """

    place: int
    kind: str


Tree = dict[str, bytes | str | None]
"""Contents of a folder by path within it: the bytes of a file, the target of a symbolic link, None for a folder."""


@dataclass(eq=False)
class _File:
    """A file: its durable bytes (None: never synced), and its bytes when it lost its last name."""

    durable: bytes | None = None
    last: bytes = b""


@dataclass(eq=False)
class _Link:
    """A symbolic link."""

    target: str


@dataclass(eq=False)
class _Folder:
    """A folder: its names now, its durable ones, and the changes that are not durable."""

    names: dict[str, Any] = field(default_factory=dict)
    durable: dict[str, Any] = field(default_factory=dict)
    pending: list["_Change"] = field(default_factory=list)


@dataclass(eq=False)
class _Change:
    """Names that one operation changes; None: the name goes."""

    parts: list[tuple[_Folder, str, Any]]


class Disk:
    """The disk below a folder.

    Args:
        root: The folder; what lies in it is durable.
        disturbance: What happens, and when; None only counts.
        dying: Called with this disk just before this process is killed.
        syncs: Whether the real disk is synced, too; it matters only if that loses power.

    Attributes:
        lock: Held during an operation.
        operations: The operations so far, as text; unique parts of names are left out.
    """

    def __init__(
        self,
        root: Path,
        disturbance: Disturbance | None = None,
        dying: Callable[["Disk"], None] = lambda disk: None,
        syncs: bool = False,
    ):
        self.syncs = syncs
        self.root = root
        self.operations: list[str] = []
        self._disturbance, self._dying = disturbance, dying
        self.lock = threading.RLock()
        self._tree = self._scanned(root)
        self._full = False

    # What an operation goes through

    def operation(self, kind: str, path: Path, *, half: Callable[[], None] = lambda: None, named: bool = True) -> None:
        """Count an operation, and disturb it if it is the one.

        Args:
            kind: One word.
            path: What it changes.
            half: Does half of it.
            named: Whether the system's error has the path.
        """
        self.operations.append(f"{kind} {_UNIQUE.sub('*', str(path.relative_to(self.root)))}")
        told = self._disturbance
        if self._full and kind in _NEEDS_ROOM:
            raise _refusal(errno.ENOSPC, path, named)
        if told is None or len(self.operations) - 1 != told.place:
            return
        if told.kind == "EIO":
            half()
            raise _refusal(errno.EIO, path, named)
        if told.kind == "ENOSPC":
            self._full = True
            if kind not in _NEEDS_ROOM:
                return
            half()
            raise _refusal(errno.ENOSPC, path, named)
        half()
        self._dying(self)
        os.kill(os.getpid(), signal.SIGKILL)

    def create(self, path: Path) -> None:
        """Know of a file that gets a name."""
        with self.lock:
            self._change((path, _File()))

    def sync(self, path: Path) -> None:
        """Make a file's bytes, or a folder's names, durable."""
        node = self._at(path)
        if isinstance(node, _File):
            node.durable = _bytes(path)
        elif isinstance(node, _Folder):
            for change in node.pending:
                for folder, name, what in change.parts:
                    _set(folder.durable, name, what)
                    if folder is not node:
                        folder.pending.remove(change)
            node.pending.clear()

    def rename(self, source: Path, target: Path) -> None:
        """Know of a file or folder that gets another name."""
        self._change((source, None), (target, self._at(source)))

    def link(self, source: Path, target: Path) -> None:
        """Know of a file that gets a second name."""
        self._change((target, self._at(source)))

    def symlink(self, text: str, path: Path) -> None:
        """Know of a symbolic link."""
        self._change((path, _Link(text)))

    def mkdir(self, path: Path) -> None:
        """Know of a folder that is made."""
        self._change((path, _Folder()))

    def remove(self, path: Path) -> None:
        """Know of a name that goes."""
        self._change((path, None))

    def leave(self, path: Path) -> None:
        """Keep the bytes of a file that is about to lose a name."""
        node = self._at(path)
        if isinstance(node, _File):
            node.last = _bytes(path)

    def inside(self, path: Any, folder: int | None = None) -> Path | None:
        """Return the absolute path that a call means; None if it is not below the root, or the root itself."""
        if isinstance(path, int):
            found = Path(os.readlink(f"/proc/self/fd/{path}"))
        else:
            found = Path(os.path.abspath(os.fsdecode(path)))
            if folder is not None and not os.path.isabs(os.fsdecode(path)):
                found = Path(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
        return found if found == self.root or self.root in found.parents else None

    # What a loss of power leaves

    def left(self, loss: Loss) -> Tree:
        """Return what a loss of power at this moment leaves."""
        self.check()
        tree: Tree = {}
        self._collect(self._tree, "", loss, self._contents(), tree)
        return tree

    def check(self) -> None:
        """Compare what is known of the names with the disk: no operation may have gone another way.

        Raises:
            AssertionError: One did.
        """
        with self.lock:
            known: set[str] = set()
            _names(self._tree, "", known)
            found = {str(path.relative_to(self.root)) for path in self.root.rglob("*")}
            assert known == found, f"operations that were not seen: {sorted(known ^ found)}"

    def _contents(self) -> dict[int, bytes]:
        """Return the bytes of each file that has a name, by the identity of its node."""
        found: dict[int, bytes] = {}
        _read(self._tree, self.root, found)
        return found

    def _collect(self, folder: _Folder, path: str, loss: Loss, contents: dict[int, bytes], tree: Tree) -> None:
        names = dict(folder.durable)
        for change in folder.pending:
            if any(self._durable(one, change, loss) for one, _, _ in change.parts):
                for _, name, what in (part for part in change.parts if part[0] is folder):
                    _set(names, name, what)
        for name, what in names.items():
            if isinstance(what, _Folder):
                tree[f"{path}{name}"] = None
                self._collect(what, f"{path}{name}/", loss, contents, tree)
            elif isinstance(what, _Link):
                tree[f"{path}{name}"] = what.target
            else:
                tree[f"{path}{name}"] = _left(what, contents.get(id(what), what.last), loss.content)

    def _durable(self, folder: _Folder, change: _Change, loss: Loss) -> bool:
        if loss.folders and any(isinstance(what, _Folder) for _, _, what in change.parts):
            return True
        place = self._place(folder, self._tree, ".")
        return loss.names(place, folder.pending.index(change), len(folder.pending))

    def _place(self, wanted: _Folder, folder: _Folder, path: str) -> str:
        """Return the path of a folder; "" if it has no name any more."""
        if folder is wanted:
            return path
        inner = [(name, one) for name, one in folder.names.items() if isinstance(one, _Folder)]
        return next((found for name, one in inner if (found := self._place(wanted, one, f"{path}/{name}"))), "")

    def _scanned(self, path: Path) -> _Folder:
        folder = _Folder()
        for entry in os.scandir(path):
            if entry.is_symlink():
                folder.names[entry.name] = _Link(os.readlink(entry.path))
            elif entry.is_dir():
                folder.names[entry.name] = self._scanned(Path(entry.path))
            else:
                folder.names[entry.name] = _File(_bytes(Path(entry.path)))
        folder.durable = dict(folder.names)
        return folder

    def _at(self, path: Path) -> Any:
        node: Any = self._tree
        for part in path.relative_to(self.root).parts:
            node = node.names.get(part)
            if isinstance(node, _Link):
                raise AssertionError(f"{path}: what is behind a link is not followed")
        return node

    def _change(self, *what: tuple[Path, Any]) -> None:
        parts = [(self._at(path.parent), path.name, node) for path, node in what]
        change = _Change(parts)
        for folder, name, node in parts:
            _set(folder.names, name, node)
            if change not in folder.pending:
                folder.pending.append(change)


def _set(names: dict[str, Any], name: str, what: Any) -> None:
    if what is None:
        names.pop(name, None)
    else:
        names[name] = what


def _names(folder: _Folder, path: str, into: set[str]) -> None:
    for name, what in folder.names.items():
        into.add(f"{path}{name}")
        if isinstance(what, _Folder):
            _names(what, f"{path}{name}/", into)


def _read(folder: _Folder, path: Path, into: dict[int, bytes]) -> None:
    for name, what in folder.names.items():
        if isinstance(what, _Folder):
            _read(what, path / name, into)
        elif isinstance(what, _File):
            into[id(what)] = _bytes(path / name)


def tree_of(root: Path) -> Tree:
    """Return what is in a folder."""
    found: Tree = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        found[name] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else _bytes(path)
    return found


def write_tree(root: Path, tree: Tree) -> None:
    """Have a folder hold this alone."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, what in sorted(tree.items()):
        if what is None:
            (root / name).mkdir()
        elif isinstance(what, str):
            (root / name).symlink_to(what)
        else:
            (root / name).write_bytes(what)


def _left(file: _File, content: bytes, of: Bytes) -> bytes:
    durable = file.durable or b""
    if of == "kept" or content == file.durable:
        return content
    if of == "lost":
        return durable
    start = len(durable) if content.startswith(durable) else 0
    return content[: start + (len(content) - start) // 2]


def _bytes(path: Path) -> bytes:
    with _REAL_OPEN(path, "rb") as stream:
        content: bytes = stream.read()
        return content


def _refusal(code: int, path: Path, named: bool) -> OSError:
    return OSError(code, os.strerror(code), *([str(path)] if named else []))
