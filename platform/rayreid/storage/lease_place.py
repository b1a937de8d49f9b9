"""What a lease does on its storage and asks of its machine, one operation a method.

`rayreid.storage.lease` is the protocol, which `tests/lease_model.py` runs on a simulated place.
"""

import contextlib
import json
import logging
import os
import re
import socket
import stat
import threading
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rayreid.errors import UserError, escaped
from rayreid.files import make_folder, naming, sync_file
from rayreid.state_files import aside_of

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = Path("/proc/self/ns/pid")
_STAT = "/proc/{}/stat"
_MOST_BYTES = 4096
_TOKEN = re.compile(r"[0-9a-zA-Z]{1,64}")
_GONE = ".gone"
_LARGEST_PID = 2**31 - 1

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Holder:
    """The holder that a lease names.

    Attributes:
        token: Text that no other lease has.
        host: The scope in which the holder's pid is unique; see `here`.
        pid: Its process.
        started: When that process started, on the clock of its boot; None if it is unknown.
    """

    token: str
    host: str = ""
    pid: int = 0
    started: int | None = None

    def text(self) -> str:
        """Return the content of the lease file."""
        return json.dumps({"token": self.token, "host": self.host, "pid": self.pid, "started": self.started})


class LeasePlace:
    """A folder on shared storage, and this machine.

    Args:
        path: The lease file.
    """

    def __init__(self, path: Path):
        self.path = path

    def me(self, token: str) -> Holder:
        """Return this process as a holder."""
        return Holder(token, here(), os.getpid(), start_of(os.getpid()))

    def create(self, holder: Holder) -> bool:
        """Create the lease file with its content, and return whether it did not exist.

        The content is written aside and then linked, which fails if the lease exists.
        """
        aside = self._beside(f"{holder.token}")
        make_folder(aside.parent)  # a run that was refused may have removed it, and may do so again at any moment
        try:
            with naming(self.path):
                aside.write_text(holder.text())
                sync_file(aside)  # else a power failure could leave an empty lease, which tells nothing of its holder
                os.link(aside, self.path)
        except (FileNotFoundError, FileExistsError):
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def holder(self) -> Holder | None:
        """Return the holder that the lease names; None if there is no lease.

        What is no lease names an unreadable holder. A lease file gets its name with its content, so no live process is
        about to complete it.
        """
        try:
            status = self.path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
                return Holder(UNREADABLE)
            return _parsed(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise UserError(f"{self.path}: this lease cannot be read ({error.strerror}); see RAYREID_ROOT") from None

    def written(self) -> int | None:
        """Return when the lease was touched last, by the storage's clock (ns); None if there is none."""
        return _modified(self.path)

    def now(self) -> int:
        """Return the time by the storage's clock (ns): the time stamp of a file that is just written."""
        clock = self._beside(f"{uuid.uuid4().hex}.clock")
        try:
            clock.touch()
            return clock.stat().st_mtime_ns
        finally:
            clock.unlink(missing_ok=True)

    def touch(self) -> None:
        """Renew the lease's time stamp."""
        os.utime(self.path)

    def remove(self) -> None:
        """Remove the lease file, if it is there."""
        self.path.unlink(missing_ok=True)

    def set_aside(self) -> None:
        """Give what is no lease another name, and say so."""
        aside = aside_of(self.path)
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            logging.getLogger("rayreid").warning(
                "%s: this is not a lease; it is moved to %s, which you can delete", escaped(str(self.path)), aside.name
            )

    def bury(self, token: str) -> bool:
        """Claim the burial of a holder for this process alone, and return whether that succeeded."""
        try:
            self._tombstone(token).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def buried(self, token: str) -> int | None:
        """Return when a burial was claimed, by the storage's clock (ns); None if it was not."""
        return _modified(self._tombstone(token))

    def end_burial(self, token: str) -> None:
        """Give up the claim to a burial."""
        self._tombstone(token).unlink(missing_ok=True)

    def burials(self) -> list[str]:
        """Return the tokens of the holders that some process is burying."""
        start, end = f".{self.path.name}.", _GONE
        with contextlib.suppress(FileNotFoundError):
            names = [path.name for path in self.path.parent.iterdir()]
            names = [name for name in names if name.startswith(start) and name.endswith(end)]
            return [name.removeprefix(start).removesuffix(end) for name in names]
        return []

    def alive(self, holder: Holder) -> bool | None:
        """Return whether a holder's process lives; None if that cannot be told from here."""
        if holder.host != here():
            return None
        try:
            os.kill(holder.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        if holder.started is None:
            return None
        started = start_of(holder.pid)
        return None if started is None and not Path(_STAT.format("self")).exists() else started == holder.started

    def monotonic(self) -> float:
        """Return seconds by this machine's clock that nobody sets."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for an event, and return whether it came."""
        return event.wait(seconds)

    def _beside(self, name: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{name}")

    def _tombstone(self, token: str) -> Path:
        return self._beside(f"{token}{_GONE}")


@cache
def here() -> str:
    """Return an id of the scope in which this process's pid is unique: containers may share a host name, not pids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # without /proc, the host name must do
        parts += [_BOOT.read_text().strip(), str(_PIDS.readlink())]
    return " ".join(parts)


def start_of(pid: int) -> int | None:
    """Return when a process started (clock ticks since the boot); None if it has ended, or there is no /proc."""
    try:
        fields = Path(_STAT.format(pid)).read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _parsed(content: bytes) -> Holder:
    try:
        found = json.loads(content)
        token, host, pid, started = (found.get(name) for name in ("token", "host", "pid", "started"))
        _require(isinstance(token, str) and _TOKEN.fullmatch(token) is not None)  # it becomes part of a file name
        _require(isinstance(host, str) and type(pid) is int and 0 < pid <= _LARGEST_PID)
        _require(started is None or type(started) is int)
    except (ValueError, AttributeError, RecursionError):
        return Holder(UNREADABLE)
    return Holder(token, host, pid, started)


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _modified(path: Path) -> int | None:
    try:
        return path.lstat().st_mtime_ns
    except FileNotFoundError:
        return None
