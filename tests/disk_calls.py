"""The calls by which Python, and Arrow's writers, change a disk, sent through a `disturbed_disk.Disk`."""
# What stands below pathlib cannot use it, and its functions return what those of the system do.
# ruff: noqa: PTH123, RET503

import builtins
import contextlib
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from disturbed_disk import Disk


class _Raw(io.FileIO):
    """A file below the root that is open for writing."""

    def __init__(self, disk: Disk, path: Path, mode: str):
        self._disk, self._path = disk, path
        with disk.lock:
            there = path.exists()
            if not there or "w" in mode:
                disk.operation("create" if not there else "truncate", path)
            super().__init__(path, mode)
            if not there:
                disk.create(path)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        with self._disk.lock:
            self._disk.operation(
                "write", self._path, half=lambda: super(_Raw, self).write(view[: len(view) // 2]), named=False
            )
            return super().write(view)

    def truncate(self, size: int | None = None) -> int:
        with self._disk.lock:
            self._disk.operation("truncate", self._path, named=False)
            return super().truncate(size)


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
        with disk.lock:
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
        with disk.lock:
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
        with disk.lock:
            disk.operation("mkdir", found)
            real(path, mode, dir_fd=dir_fd)
            disk.mkdir(found)

    return made


def _os_rmdir(disk: Disk, real: Callable[..., None]) -> Callable[..., None]:
    def removed(path: Any, *, dir_fd: int | None = None) -> None:
        found = disk.inside(path, dir_fd)
        if found is None or not found.is_dir() or any(found.iterdir()):
            return real(path, dir_fd=dir_fd)
        with disk.lock:
            disk.operation("rmdir", found)
            real(path, dir_fd=dir_fd)
            disk.remove(found)

    return removed


def _os_unlink(disk: Disk, real: Callable[..., None]) -> Callable[..., None]:
    def removed(path: Any, *, dir_fd: int | None = None) -> None:
        found = disk.inside(path, dir_fd)
        if found is None or not os.path.lexists(found):
            return real(path, dir_fd=dir_fd)
        with disk.lock:
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
        with disk.lock:
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
        with disk.lock:
            disk.operation("link", to)
            real(source, target, **rest)
            disk.link(found, to)

    return linked


def _os_symlink(disk: Disk, real: Callable[..., None]) -> Callable[..., None]:
    def linked(source: Any, target: Any, *rest: Any, **named: Any) -> None:
        to = disk.inside(target)
        if to is None:
            return real(source, target, *rest, **named)
        with disk.lock:
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
