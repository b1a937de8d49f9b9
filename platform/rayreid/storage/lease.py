"""A lease that lets one process at a time write to a folder on storage shared by several machines."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from rayreid.files import make_folder

_BEAT_SECONDS = 2.0
_STALE_SECONDS = 30.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = Path("/proc/self/ns/pid")


class Lease:
    """A lock file that its holder touches every 2 s; a lock untouched for 30 s, or of a dead process, is taken over.

    Ages are measured by the storage's clock (the time stamp of a file just written beside the lock), never by this
    machine's clock.

    Args:
        path: The lock file.
        poll: Seconds between checks while another run holds the lock.
        waiting: Called once if a live holder has to be waited for.
    """

    def __init__(self, path: Path, poll: float = 1.0, waiting: Callable[[], None] = lambda: None):
        self.path = path
        self.poll = poll
        self._waiting, self._told = waiting, False
        self._token = uuid.uuid4().hex
        self._released = threading.Event()
        self._beat = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "Lease":
        while not self._try():
            with contextlib.suppress(FileNotFoundError):  # a run that was refused has removed the folder meanwhile
                self._bury_or_wait()
        self._beat.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._released.set()
        self._beat.join()
        if self._holder().get("token") == self._token:
            self.path.unlink(missing_ok=True)

    def _try(self) -> bool:
        """Create the lock file atomically: write a file aside, then link it, which fails if the lock exists."""
        aside = self.path.with_name(f".{self.path.name}.{self._token}")
        make_folder(aside.parent)  # a run that was refused may have removed it, and may do so again at any moment
        try:
            aside.write_text(json.dumps({"token": self._token, "host": here(), "pid": os.getpid()}))
            os.link(aside, self.path)
        except (FileNotFoundError, FileExistsError):
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def _bury_or_wait(self) -> None:
        if self._bury_if_dead():
            return
        if not self._told:
            self._told = True
            self._waiting()
        time.sleep(self.poll)

    def _bury_if_dead(self) -> bool:
        """Remove the lock of a holder that is gone; only one of several waiting processes succeeds."""
        holder = self._holder()
        if not holder:
            return True
        if not (self._process_gone(holder) or self._age(self.path) > _STALE_SECONDS):
            return False
        # Only the process that creates the tombstone may remove that holder's lock. A latecomer finds the lock
        # gone, or held by another process.
        tombstone = self.path.with_name(f".{self.path.name}.{holder['token']}.gone")
        try:
            tombstone.touch(exist_ok=False)
        except FileExistsError:
            if self._age(tombstone) > _STALE_SECONDS:  # its creator is gone, too
                tombstone.unlink(missing_ok=True)
            return False
        try:
            if self._holder().get("token") == holder["token"]:
                self.path.unlink(missing_ok=True)
        finally:
            tombstone.unlink(missing_ok=True)
        return True

    def _holder(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError:  # truncated by a crash of the machine: it has no holder, so its age decides
            return {"token": "unreadable", "host": "", "pid": 0}

    def _process_gone(self, holder: Mapping[str, Any]) -> bool:
        if holder["host"] != here():
            return False
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _age(self, path: Path) -> float:
        clock = self.path.with_name(f".{self.path.name}.{self._token}.clock")
        clock.touch()
        try:
            return clock.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            clock.unlink(missing_ok=True)

    def _keep(self) -> None:
        while not self._released.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the storage may fail for a moment
                if (
                    self._holder().get("token") == self._token
                ):  # otherwise the lock was taken over, and its new holder touches it
                    os.utime(self.path)


@cache
def here() -> str:
    """Return an id of the scope in which this process's pid is unique: containers may share a host name, not pids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # without /proc, the host name must do
        parts += [_BOOT.read_text().strip(), str(_PIDS.readlink())]
    return " ".join(parts)


def held_by_another(path: Path) -> bool:
    """Return whether a lock file names a process other than this one."""
    try:
        holder = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return (holder["host"], holder["pid"]) != (here(), os.getpid())
