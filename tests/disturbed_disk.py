"""A disk on which each operation can be the last one, can fail, or can be followed by a loss of power.

`Disk` stands between Python and the file system below one folder. It counts the operations that change something there
(creating, writing, syncing, renaming, linking, removing, making folders), and knows what of them is durable: the bytes
of a file when it was synced last, and the names in a folder when that was synced last. A `Disturbance` names an
operation and what happens at it.

What a loss of power leaves is any state that POSIX allows: bytes that were not synced are gone or cut, and names that
were not synced are the old ones or the new ones. A rename is never done by half. Of the names of one folder, a later
change may be durable and an earlier one not.
"""

import builtins
import contextlib
import errno
import io
import os
import re
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

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
        self._lock = threading.RLock()
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
        with self._lock:
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
        with self._lock:
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


class _Raw(io.FileIO):
    """A file below the root that is open for writing."""

    def __init__(self, disk: Disk, path: Path, mode: str):
        self._disk, self._path = disk, path
        with disk._lock:
            there = path.exists()
            if not there or "w" in mode:
                disk.operation("create" if not there else "truncate", path)
            super().__init__(path, mode)
            if not there:
                disk.create(path)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        with self._disk._lock:
            self._disk.operation(
                "write", self._path, half=lambda: super(_Raw, self).write(view[: len(view) // 2]), named=False
            )
            return super().write(view)

    def truncate(self, size: int | None = None) -> int:
        with self._disk._lock:
            self._disk.operation("truncate", self._path, named=False)
            return super().truncate(size)


_REAL_OPEN = builtins.open


@contextlib.contextmanager
def disturbed(disk: Disk) -> Iterator[Disk]:
    """Send the operations of Python, and of Arrow's writers, through a disk within a `with` block."""
    patches = [
        (builtins, "open", _open),
        (io, "open", _open),
        (os, "open", _os_open),
        (os, "write", _os_write),
        (os, "fsync", _os_fsync),
        (os, "fdatasync", _os_fsync),
        (os, "mkdir", _os_mkdir),
        (os, "rmdir", _os_rmdir),
        (os, "unlink", _os_unlink),
        (os, "remove", _os_unlink),
        (os, "rename", _os_rename),
        (os, "replace", _os_rename),
        (os, "link", _os_link),
        (os, "symlink", _os_symlink),
        (os, "truncate", _os_truncate),
        (os, "ftruncate", _os_truncate),
        (pa.ipc, "new_file", _through_python),
        (pq, "write_table", _write_table),
        (pq, "ParquetWriter", _parquet_writer),
        (shutil, "_USE_CP_SENDFILE", None),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in patches]
    for (place, name, replace), (_, _, real) in zip(patches, before, strict=True):
        setattr(place, name, replace(disk, real) if replace else False)
    try:
        yield disk
    finally:
        for place, name, real in before:
            setattr(place, name, real)


def _open(disk: Disk, real: Callable[..., Any]) -> Callable[..., Any]:
    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        path = None if isinstance(file, int) or opener or not set(mode) & set("wax+") else disk.inside(file)
        if path is None or stat.S_ISFIFO(_mode(path)):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(disk, path, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    return opened


def _mode(path: Path) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def _os_open(disk: Disk, real: Callable[..., int]) -> Callable[..., int]:
    def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        found = disk.inside(path, dir_fd) if flags & os.O_CREAT else None
        if found is None or found.exists():
            return real(path, flags, mode, dir_fd=dir_fd)
        with disk._lock:
            disk.operation("create", found)
            descriptor = real(path, flags, mode, dir_fd=dir_fd)
            disk.create(found)
            return descriptor

    return opened


def _os_write(disk: Disk, real: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
    def written(descriptor: int, data: Any) -> int:
        path = disk.inside(descriptor)
        if path is not None:
            disk.operation("write", path, half=lambda: real(descriptor, data[: len(data) // 2]), named=False)
        return real(descriptor, data)

    return written


def _os_fsync(disk: Disk, real: Callable[[int], None]) -> Callable[[int], None]:
    def synced(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = disk.inside(number)
        if path is None:
            return real(descriptor)
        with disk._lock:
            disk.operation("sync", path, named=False)
            if disk.syncs:
                real(descriptor)
            disk.sync(path)

    return synced


def _os_mkdir(disk: Disk, real: Callable[..., None]) -> Callable[..., None]:
    def made(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        found = disk.inside(path, dir_fd)
        if found is None or found.exists() or not found.parent.exists():
            return real(path, mode, dir_fd=dir_fd)
        with disk._lock:
            disk.operation("mkdir", found)
            real(path, mode, dir_fd=dir_fd)
            disk.mkdir(found)

    return made


def _os_rmdir(disk: Disk, real: Callable[..., None]) -> Callable[..., None]:
    def removed(path: Any, *, dir_fd: int | None = None) -> None:
        found = disk.inside(path, dir_fd)
        if found is None or not found.is_dir() or any(found.iterdir()):
            return real(path, dir_fd=dir_fd)
        with disk._lock:
            disk.operation("rmdir", found)
            real(path, dir_fd=dir_fd)
            disk.remove(found)

    return removed


def _os_unlink(disk: Disk, real: Callable[..., None]) -> Callable[..., None]:
    def removed(path: Any, *, dir_fd: int | None = None) -> None:
        found = disk.inside(path, dir_fd)
        if found is None or not os.path.lexists(found):
            return real(path, dir_fd=dir_fd)
        with disk._lock:
            disk.operation("remove", found)
            disk.leave(found)
            real(path, dir_fd=dir_fd)
            disk.remove(found)

    return removed


def _os_rename(disk: Disk, real: Callable[..., None]) -> Callable[..., None]:
    def renamed(source: Any, target: Any, **rest: Any) -> None:
        found, to = disk.inside(source), disk.inside(target)
        if found is None or to is None or not os.path.lexists(found):
            return real(source, target, **rest)
        with disk._lock:
            disk.operation("rename", to)
            if os.path.lexists(to):
                disk.leave(to)
            real(source, target, **rest)
            disk.rename(found, to)

    return renamed


def _os_link(disk: Disk, real: Callable[..., None]) -> Callable[..., None]:
    def linked(source: Any, target: Any, **rest: Any) -> None:
        found, to = disk.inside(source), disk.inside(target)
        if found is None or to is None or os.path.lexists(to) or not os.path.lexists(found):
            return real(source, target, **rest)
        with disk._lock:
            disk.operation("link", to)
            real(source, target, **rest)
            disk.link(found, to)

    return linked


def _os_symlink(disk: Disk, real: Callable[..., None]) -> Callable[..., None]:
    def linked(source: Any, target: Any, *rest: Any, **named: Any) -> None:
        to = disk.inside(target)
        if to is None:
            return real(source, target, *rest, **named)
        with disk._lock:
            disk.operation("link", to)
            real(source, target, *rest, **named)
            disk.symlink(os.fsdecode(source), to)

    return linked


def _os_truncate(disk: Disk, real: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
    def truncated(path: Any, length: int) -> None:
        found = disk.inside(path)
        if found is not None:
            disk.operation("truncate", found, named=not isinstance(path, int))
        return real(path, length)

    return truncated


def _through_python(disk: Disk, real: Callable[..., Any]) -> Callable[..., Any]:
    """Let Arrow's writer write to a file of Python's."""

    def opened(sink: Any, *rest: Any, **named: Any) -> Any:
        path = disk.inside(sink) if isinstance(sink, str | Path) else None
        if path is None:
            return real(sink, *rest, **named)
        return _Closing(real(stream := builtins.open(path, "wb"), *rest, **named), stream)

    return opened


class _Closing:
    """A writer that closes its stream."""

    def __init__(self, writer: Any, stream: Any):
        self._writer, self._stream = writer, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def __enter__(self) -> "_Closing":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both."""
        try:
            self._writer.close()
        finally:
            self._stream.close()


def _write_table(disk: Disk, real: Callable[..., None]) -> Callable[..., None]:
    def written(table: pa.Table, where: Any, *rest: Any, **named: Any) -> None:
        if not isinstance(where, str | Path) or disk.inside(where) is None:
            return real(table, where, *rest, **named)
        with builtins.open(where, "wb") as stream:
            real(table, stream, *rest, **named)

    return written


def _parquet_writer(disk: Disk, real: Callable[..., Any]) -> Callable[..., Any]:
    return _through_python(disk, real)
