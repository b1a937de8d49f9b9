"""One writer at a time for a folder on storage that several machines share."""

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
    """A lock file that its holder keeps touching; one not touched for 30 s, or whose process is gone, is taken over.

    Ages are measured against the storage's own clock (the time stamp of a file just written beside it), never
    against this machine's.

    Args:
        path: the lock file.
        poll: seconds between looks while another run holds it.
        waiting: called once when there is a live holder to wait for.
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
            with contextlib.suppress(FileNotFoundError):  # a refused holder has removed the folder meanwhile
                self._bury_or_wait()
        self._beat.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._released.set()
        self._beat.join()
        if self._holder().get("token") == self._token:
            self.path.unlink(missing_ok=True)

    def _try(self) -> bool:
        """Create the file whole or not at all: written aside, then linked, which fails if it exists."""
        aside = self.path.with_name(f".{self.path.name}.{self._token}")
        make_folder(aside.parent)  # a refused holder may have removed it meanwhile, and may do so again at once
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
        """Remove the lock of a holder that is gone; only one of several onlookers succeeds."""
        holder = self._holder()
        if not holder:
            return True
        if not (self._process_gone(holder) or self._age(self.path) > _STALE_SECONDS):
            return False
        # Who makes the tombstone alone may remove that holder's lock; a latecomer finds it gone, or another's lock.
        tombstone = self.path.with_name(f".{self.path.name}.{holder['token']}.gone")
        try:
            tombstone.touch(exist_ok=False)
        except FileExistsError:
            if self._age(tombstone) > _STALE_SECONDS:  # whoever made it is gone, too
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
        except ValueError:  # cut short by a crash of the machine: nobody's; its age decides
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
            with contextlib.suppress(OSError):  # of the storage; it may pass
                if self._holder().get("token") == self._token:  # else it was taken over: the new holder's to touch
                    os.utime(self.path)


@cache
def here() -> str:
    """Where this process's number means something: containers of one host name have numbers of their own."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # where there is no /proc the name must do
        parts += [_BOOT.read_text().strip(), str(_PIDS.readlink())]
    return " ".join(parts)


def held_by_another(path: Path) -> bool:
    """Whether a lock file names another process than this one."""
    try:
        holder = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return (holder["host"], holder["pid"]) != (here(), os.getpid())
