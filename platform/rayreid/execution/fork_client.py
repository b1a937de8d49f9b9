"""Becomes one of Ray's workers by asking `rayreid.execution.fork_server` for a process. Ray starts this file as Python.

    python -I -S fork_client.py SOCKET MODULES SCRIPT ARGUMENTS

The first client starts the server, which imports MODULES (separated by commas) once. Each client then asks for a
process that runs SCRIPT with ARGUMENTS in the client's environment and folder, and ends when that process does. Where
there is no server, or it refuses, the client becomes the process itself, as if Ray had started Python.

This file imports neither this package nor any other outside Python, so that a client starts in milliseconds.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

READY = b"+"
"""What the server sends before a client sends its request. A client that has given up sends none, so the server never
starts a process for one that has become the process itself."""
SIZE = 8
"""Bytes of a request's length, which precedes it."""
STANDARD = (0, 1, 2)
"""Descriptors of the standard streams, which the process gets from its client."""
_PATIENCE = 30.0
"""Seconds for the server to import its modules; Ray waits twice as long for a worker."""
_BEGINNING = 1.0
"""Seconds between the appearance of the server's socket and the first time that it can be reached."""


def main(arguments: Sequence[str]) -> None:
    """Run a script in a process of the server, or else in this one; see the module.

    Args:
        arguments: Path of the server's socket, its modules, and the command to run.
    """
    place, modules, *command = arguments
    connection = _reached(place, modules)
    process = _requested(connection, command) if connection is not None else None
    if connection is None or process is None:
        os.execv(sys.executable, [sys.executable, *command])
    connection.settimeout(None)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(process, number))
    while connection.recv(1):  # the process holds the other end for as long as it lives, and sends nothing more
        pass


def _reached(place: str, modules: str) -> socket.socket | None:
    """Return a connection to the server, which is started if there is none yet; None if it cannot be reached."""
    until = time.monotonic() + _BEGINNING
    while time.monotonic() < until:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(place)
            return connection
        except FileNotFoundError:
            _start(place, modules)
        except ConnectionRefusedError:  # it does not listen yet, or no more
            time.sleep(0.01)
        except OSError:
            return None
        connection.close()
    return None


def _start(place: str, modules: str) -> None:
    """Start the server, unless another client is about to: only one can create the socket."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(place)
    except OSError:
        return
    listener.listen(64)
    if os.fork() == 0:
        os.setpgid(0, 0)  # when a worker ends, Ray ends its whole process group
        log = os.open(f"{place}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for descriptor, own in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(descriptor, own)
        os.set_inheritable(listener.fileno(), True)
        server = ["-m", "rayreid.execution.fork_server", str(listener.fileno()), *modules.split(",")]
        # Numerical libraries read the number of threads when they are loaded, and a process with several cannot be
        # forked safely. A forked process sets the number that it was given.
        os.execve(sys.executable, [sys.executable, *server], {**os.environ, "OMP_NUM_THREADS": "1"})
    listener.close()


def _requested(connection: socket.socket, command: Sequence[str]) -> int | None:
    """Return the process that the server has started for a command; None if it has started none."""
    request: dict[str, Any] = {
        "command": list(command),
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "group": os.getpgrp(),
    }
    try:
        connection.settimeout(_PATIENCE)
        if connection.recv(1) != READY:
            return None
        text = json.dumps(request).encode()
        socket.send_fds(connection, [len(text).to_bytes(SIZE, "big")], STANDARD)
        connection.sendall(text)
        answer = connection.recv(32)
    except OSError:
        return None
    return int(answer) if answer else None


if __name__ == "__main__":
    main(sys.argv[1:])
