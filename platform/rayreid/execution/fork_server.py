"""A process from which Ray's workers are forked, with torch, timm and Ray Train imported already.

By itself, each worker process of Ray begins with Python alone. A training starts four or more processes, and importing
what they need took 22 s of CPU time, measured for a training on one worker. A forked process has it at once, and shares
the memory.

Ray starts `rayreid.execution.fork_client` in place of Python (its runtime environment's `py_executable`), one for each
worker. The server is a copy of the command (`rayreid.execution.standby`), or else started by the first client. It ends
with Ray's node manager.

A forked process is what Ray's own would be, but for these:

- It has imported the modules, with what they print when they are imported.
- Where `OMP_NUM_THREADS` is not set, it computes on one thread until it sets another number, as a task of one CPU does.
- The server refuses a client whose environment differs from its own in a variable that may have been read already.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import resource
import runpy
import select
import shutil
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rayreid.execution.fork_client import DESCRIPTORS, READY, SIZE
from rayreid.execution.ray_internals import MANAGER, START_HOOK, no_ids_drawn

_LATE = (START_HOOK, "OMP_NUM_THREADS", "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC")
"""Variables that a process may have of its own: they are read after the fork, or set again then."""
_LATE_PREFIXES = ("RAYREID_", "RAY_TRAIN_")
_SECONDS = 10.0
"""Time for a client to send its request."""


@dataclass(frozen=True)
class Request:
    """A request for a process.

    Attributes:
        command: The script and its arguments.
        environment: The process's environment variables.
        group: The client's process group, which Ray takes for the process's.
        descriptors: The client's standard streams and current folder, as descriptors of this process.
    """

    command: list[str]
    environment: dict[str, str]
    group: int
    descriptors: tuple[int, ...]


def main(arguments: Sequence[str]) -> NoReturn:
    """Serve until Ray's node manager ends; in a forked process, run what was asked for. Then end the process.

    Args:
        arguments: Descriptor of the socket on which the server listens, and the modules to import.
    """
    descriptor, *modules = arguments
    serve(socket.socket(fileno=int(descriptor)), modules)


def serve(
    listener: socket.socket, modules: Sequence[str], first: tuple[Request, socket.socket] | None = None
) -> NoReturn:
    """Serve until Ray's node manager ends; in a forked process, run what was asked for. Then end the process.

    Args:
        listener: The socket on which the server listens; it is closed at the end.
        modules: The modules to import.
        first: A request that was accepted already.
    """
    try:
        _serve_or_run(listener, modules, first)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _serve_or_run(
    listener: socket.socket, modules: Sequence[str], first: tuple[Request, socket.socket] | None
) -> NoReturn:
    environment = dict(os.environ)
    manager = os.pidfd_open(int(environment[MANAGER]))
    with contextlib.suppress(OSError, ValueError):  # Ray raises the limit of open files for its own processes
        files = resource.prlimit(int(environment[MANAGER]), resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
    gc.disable()
    with no_ids_drawn():
        for module in modules:
            importlib.import_module(module)
            if _readable(manager, seconds=0):
                os._exit(0)
    gc.enable()
    gc.freeze()  # else a process that searches its objects for cycles would copy the memory that it shares
    added = {name: value for name, value in os.environ.items() if name not in environment}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets processes that have ended
    request = _serve(listener, manager, environment, first)
    if request is None:
        if first is None:  # this is no copy of a command, so what ends it is its own
            atexit._run_exitfuncs()
        os._exit(0)
    listener.close()
    os.close(manager)
    os.environ.update({name: value for name, value in added.items() if name not in os.environ})
    _run(request.command[0])


def _run(script: str) -> NoReturn:
    """Run a script as Python's own process would, and end this one as Python ends, whatever it was in the middle of."""
    status = 1
    try:
        try:
            runpy.run_path(script, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = _status(end.code)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        # A signal's handler may raise another SystemExit here, which Python would report and go on.
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
    finally:
        os._exit(status)


def _status(code: Any) -> int:
    """Return the exit status for what `sys.exit` was given, and print that if it is a message."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _serve(
    listener: socket.socket,
    manager: int,
    environment: Mapping[str, str],
    first: tuple[Request, socket.socket] | None,
) -> Request | None:
    """Fork a process for each request; return the request in that process, and None when the node manager has ended."""
    if first is not None and _forked(*first, environment):
        return first[0]
    while not _readable(manager, listener.fileno()):
        request, connection = accept(listener)
        if request is not None and _forked(request, connection, environment):
            return request
    return None


def accept(listener: socket.socket) -> tuple[Request | None, socket.socket]:
    """Accept a client and return its request, None if it has gone, and the connection to it."""
    connection, _ = listener.accept()
    connection.settimeout(_SECONDS)
    request = _received(connection)
    if request is None:
        connection.close()
    return request, connection


def _forked(request: Request, connection: socket.socket, environment: Mapping[str, str]) -> bool:
    """Fork a process for a request, unless variables differ that may have been read; return whether this is it."""
    refused = different(request.environment, environment)
    if refused:
        print("a process starts by itself because these variables differ:", *refused)
    sys.stdout.flush()
    sys.stderr.flush()
    if not refused and os.fork() == 0:
        _become(request, connection)
        return True
    _close(request.descriptors)
    connection.close()
    return False


def _readable(descriptor: int, *others: int, seconds: float | None = None) -> bool:
    """Wait until one of some descriptors can be read, and return whether the first one can."""
    ready, _, _ = select.select([descriptor, *others], [], [], seconds)
    return descriptor in ready


def _received(connection: socket.socket) -> Request | None:
    """Return the request of a client; None if the client has gone."""
    try:
        connection.sendall(READY)
        size, descriptors, _, _ = socket.recv_fds(connection, SIZE, DESCRIPTORS)
    except OSError:
        return None
    try:
        with connection.makefile("rb") as stream:
            text = stream.read(int.from_bytes(size, "big"))
        return Request(**json.loads(text), descriptors=tuple(descriptors))
    except (OSError, ValueError, TypeError):
        _close(descriptors)
        return None


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def different(
    asked: Mapping[str, str],
    own: Mapping[str, str],
    late: Sequence[str] = _LATE,
    prefixes: tuple[str, ...] = _LATE_PREFIXES,
) -> list[str]:
    """Return the variables that differ between two environments, except for those that are read, or set again, later.

    Args:
        asked: The environment that a process is to have.
        own: The environment of the process from which it would be forked.
        late: Variables that may differ.
        prefixes: Beginnings of the names of others.
    """
    found = {name for name in {*asked, *own} if asked.get(name) != own.get(name)}
    return sorted(name for name in found if name not in late and not name.startswith(prefixes))


def _become(request: Request, connection: socket.socket) -> None:
    """Make this process what Python would be where it is about to run the request's script, and tell the client.

    If it cannot, this process ends, and the client becomes the process.
    """
    try:
        with contextlib.suppress(OSError):  # how soon Linux may end it to free memory
            client, *_ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            Path("/proc/self/oom_score_adj").write_text(Path(f"/proc/{client}/oom_score_adj").read_text())
        *streams, folder = request.descriptors
        os.setpgid(0, request.group)
        os.fchdir(folder)
        for own, given in enumerate(streams):
            os.dup2(given, own)
        _close(request.descriptors)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        atexit.unregister(shutil.rmtree)  # matplotlib's folder, if it has none of the user's, is the server's
        os.environ.clear()
        os.environ.update(request.environment)
        sys.argv = request.command
        if not request.environment.get("PYTHONSAFEPATH"):
            sys.path.insert(0, str(Path(request.command[0]).parent))
        threads = request.environment.get("OMP_NUM_THREADS", "")
        if threads.isdecimal() and int(threads) > 1:
            compute_on(int(threads))
        _draw_differently()
        connection.sendall(str(os.getpid()).encode())
        connection.detach()  # it stays open, and its end tells the client of the process's
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def compute_on(threads: int) -> None:
    """Let numerical libraries that are imported already compute on a number of threads that they would have read."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    with contextlib.suppress(ImportError):
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads, user_api="blas")


def _draw_differently() -> None:
    """Seed the generators that a new process would have seeded differently; torch's begins alike everywhere."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


if __name__ == "__main__":
    main(sys.argv[1:])
