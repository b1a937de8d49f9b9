"""A copy of a command that waits to become the fork server of its Ray, so that torch and timm are imported once.

The server by itself imports the same modules as the command once more, which took 8 s of CPU time and delayed the first
training as long. A command therefore calls `stand_by` before it imports Ray: Ray's core reads variables when it is
imported that only its workers have. The copy imports Ray when the first of Ray's processes is asked for, with the
variables of that one.

A process in which a library has started threads cannot be copied: in the copy they are missing, and waited for. There
is no copy then, nor on a machine with GPUs, nor where Ray is imported already or is another's. `fork_client` starts the
server there.
"""

import atexit
import contextlib
import gc
import importlib
import os
import select
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rayreid.execution import fork_server
from rayreid.paths import inside_job

_MODULES = (
    "pandas",
    "rayreid.models.weights",
    "rayreid.data.augment.reid_transforms",
    "rayreid.evaluation.curves",
)
"""Modules that the command and the server both need and that take seconds; none imports Ray."""
_LATE_PREFIXES = ("RAY_", "RAYREID_", "MLFLOW_", "GLOO_", "NCCL_", "TUNE_")
_LATE = ("PYTHONPATH", "OMP_NUM_THREADS", "SPT_NOENV", "PWD", "OLDPWD", "SHLVL", "_")
"""Variables that may differ between the command and Ray's processes: nothing in `_MODULES` reads them, or what they say
is done after the copy. The module with which Ray names its processes sets one of them, and the shell through which Ray
starts them the last four."""
_THRESHOLDS = gc.get_threshold()
"""How often Python searches for cycles by itself; a command changes this."""

_SAFE_THREADS = ("jemalloc_bg_thd",)
"""Threads that do not count: jemalloc, which Arrow allocates with, starts its own again after a fork."""
_DESCRIPTORS = 65_536
"""More than this process has open."""

_waiting: socket.socket | None = None
"""The command's connection to a copy that waits. The copy notices its end."""
_appointed: socket.socket | None = None
"""The connection to a copy that serves."""


@dataclass(frozen=True)
class _Appointment:
    place: Path
    listener: socket.socket
    modules: list[str]


class StandBy(BaseException):
    """Raised in the copy, in place of the command's further work: catch it, leave the handler, and `serve`."""

    def __init__(self, link: socket.socket):
        super().__init__()
        self._link = link
        self._environment = dict(os.environ)

    def serve(self) -> NoReturn:
        """Wait for an appointment, serve, and end this process."""
        try:
            self._serve()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _serve(self) -> NoReturn:
        os.setpgid(0, 0)
        gc.set_threshold(*_THRESHOLDS)
        atexit.unregister(shutil.rmtree)  # matplotlib's folder, if it has none of the user's, is the command's
        link = self._link.fileno()
        os.closerange(3, link)
        os.closerange(link + 1, _DESCRIPTORS)
        _direct(os.devnull)
        signal.set_wakeup_fd(-1)
        sys.excepthook = sys.__excepthook__
        appointed = self._appointed()
        first = self._first(appointed.listener) if appointed is not None else None
        if appointed is None or first is None:
            os._exit(0)
        request, _ = first
        different = fork_server.different(request.environment, self._environment, _LATE, _LATE_PREFIXES)
        if different:
            print("a server starts by itself because these variables differ:", *different, flush=True)
            appointed.place.unlink()
            os._exit(0)
        fork_server.compute_on(1)  # it sets a variable of its own
        os.environ.clear()
        os.environ.update(request.environment)
        if not sys.flags.safe_path:
            del sys.path[0]  # the folder of the command's script, or the current one
        given = [path for path in request.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:] = [*given, *(path for path in sys.path if path not in given)]
        self._link.close()
        fork_server.serve(appointed.listener, appointed.modules, first)

    def _appointed(self) -> "_Appointment | None":
        """Wait for an appointment; None if the command has ended."""
        text, descriptors, _, _ = socket.recv_fds(self._link, _DESCRIPTORS, 1)
        if not descriptors:
            return None
        place, *modules = text.decode().split("\n")
        _direct(f"{place}.log")
        return _Appointment(Path(place), socket.socket(fileno=descriptors[0]), modules)

    def _first(self, listener: socket.socket) -> tuple[fork_server.Request, socket.socket] | None:
        """Wait for the first client and return its request; None if the command has ended."""
        while True:
            ready, _, _ = select.select([self._link, listener], [], [])
            if self._link in ready:
                return None
            request, connection = fork_server.accept(listener)
            if request is not None:
                return request, connection


def stand_by() -> None:
    """Import what takes seconds, and leave a copy of this process that waits to become the fork server.

    Call it where the copy may leave what it is in: a `with` block, for instance, ends in the copy, too.

    Raises:
        StandBy: In the copy.
    """
    global _waiting
    if _waiting is not None or "ray" in sys.modules or not starts_own_ray() or not can_fork():
        return
    if None in (sys.stdin, sys.stdout, sys.stderr):  # their descriptors may be another thing's
        return
    for module in _MODULES:
        importlib.import_module(module)
    import torch

    if torch.cuda.is_available():
        return
    gc.freeze()  # a search for cycles would copy the memory that the two processes share
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for the command, as in all of Ray
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        own, other = socket.socketpair()
        child = os.fork()
    except OSError:  # no more processes or memory: the server will be started by itself, or not
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return
    if child == 0:
        own.close()
        raise StandBy(other)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    other.close()
    # Numerical libraries have stopped their threads for the fork. Those that are left must be this one and the one that
    # answers Ctrl-C.
    if _threads() == threading.active_count() <= 2:
        _waiting = own
    else:
        own.close()
        os.waitpid(child, 0)


def appoint(place: Path, modules: Sequence[str]) -> None:
    """Let the copy, if there is one, serve at the socket `place`; it will import modules at the first request."""
    global _waiting, _appointed
    link = _waiting
    if link is None:
        return
    _waiting, _appointed = None, link
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen(64)
        try:
            socket.send_fds(link, ["\n".join([str(place), *modules]).encode()], [listener.fileno()])
        except OSError:  # the copy has ended
            place.unlink()


def starts_own_ray() -> bool:
    """Return whether a command starts a Ray for itself, for which it asks no cluster."""
    return not inside_job() and os.environ.get("RAY_ADDRESS", "local") in ("", "local")


def can_fork() -> bool:
    """Return whether this system has the means of the fork server: it is Linux, not an old one."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # AttributeError: this Python was built for a system without it
        return False
    return True


def _threads() -> int:
    """Return how many threads of this process count."""
    names = []
    for task in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has ended
            names.append(task.read_text().strip())
    return len([name for name in names if name not in _SAFE_THREADS])


def _direct(path: str) -> None:
    """Let the standard input be empty, and the outputs go to a file."""
    with Path(os.devnull).open() as nothing, Path(path).open("a") as log:
        for stream, own in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(stream.fileno(), own)
