"""A process from which Ray's workers are forked, with torch, timm and Ray Train imported already.

By itself, each worker process of Ray begins with Python alone. A training starts four or more processes, and importing
what they need took 22 s of CPU time, measured for a training on one worker. A forked process has it at once, and shares
the memory.

Ray starts `rayreid.execution.fork_client` in place of Python (its runtime environment's `py_executable`), one for each
worker. The first client starts the server, which ends with Ray's node manager.

A forked process differs from one that Ray starts in nothing that Ray, torch or this package read: the server refuses a
client whose environment differs from its own in a variable that may have been read already.
"""

import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayreid.execution.fork_client import READY, SIZE, STANDARD
from rayreid.execution.ray_internals import MANAGER, START_HOOK

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
        folder: Its current folder.
        group: The client's process group, which Ray takes for the process's.
        streams: The client's standard streams, as descriptors of this process.
    """

    command: list[str]
    environment: dict[str, str]
    folder: str
    group: int
    streams: tuple[int, ...]


def main(arguments: Sequence[str]) -> None:
    """Serve until Ray's node manager ends; in a forked process, run what was asked for.

    Args:
        arguments: Descriptor of the socket on which the server listens, and the modules to import.
    """
    descriptor, *modules = arguments
    environment = dict(os.environ)
    with socket.socket(fileno=int(descriptor)) as listener:
        manager = os.pidfd_open(int(environment[MANAGER]))
        gc.disable()
        for module in modules:
            importlib.import_module(module)
        gc.enable()
        gc.freeze()  # else a process that searches its objects for cycles would copy the memory that it shares
        added = {name: value for name, value in os.environ.items() if name not in environment}
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets processes that have ended
        request = _serve(listener, manager, environment)
    if request is not None:
        os.close(manager)
        _become(request, added)


def _serve(listener: socket.socket, manager: int, environment: Mapping[str, str]) -> Request | None:
    """Fork a process for each request; return the request in that process, and None when the node manager has ended."""
    while True:
        ready, _, _ = select.select([listener.fileno(), manager], [], [])
        if manager in ready:
            return None
        connection, _ = listener.accept()
        connection.settimeout(_SECONDS)
        request = _received(connection)
        if request is not None:
            if not _refused(request.environment, environment) and os.fork() == 0:
                connection.sendall(str(os.getpid()).encode())
                connection.detach()  # it stays open, and its end tells the client of the process's
                return request
            _close(request.streams)
        connection.close()


def _received(connection: socket.socket) -> Request | None:
    """Return the request of a client; None if the client has gone."""
    try:
        connection.sendall(READY)
        size, streams, _, _ = socket.recv_fds(connection, SIZE, len(STANDARD))
    except OSError:
        return None
    try:
        with connection.makefile("rb") as stream:
            text = stream.read(int.from_bytes(size, "big"))
        return Request(**json.loads(text), streams=tuple(streams))
    except (OSError, ValueError):
        _close(streams)
        return None


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _refused(asked: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Return the variables for which a process with the environment `asked` must not be forked."""
    different = {name for name in {*asked, *own} if asked.get(name) != own.get(name)}
    return sorted(name for name in different if name not in _LATE and not name.startswith(_LATE_PREFIXES))


def _become(request: Request, added: Mapping[str, str]) -> None:
    """Run a script in this process as Python would run it in a new one.

    Args:
        request: What to run.
        added: Environment variables that imported modules have set.
    """
    os.setpgid(0, request.group)
    for own, given in zip(STANDARD, request.streams, strict=True):
        os.dup2(given, own)
    _close(request.streams)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update({**added, **request.environment})
    os.chdir(request.folder)
    _draw_differently()
    threads = request.environment.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > 1 and "threadpoolctl" in sys.modules:
        sys.modules["threadpoolctl"].threadpool_limits(int(threads))
    script, *_ = sys.argv = request.command
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def _draw_differently() -> None:
    """Seed the generators that a new process would have seeded differently; torch's begins alike everywhere."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


if __name__ == "__main__":
    main(sys.argv[1:])
