"""Becomes one of Ray's workers by asking `rayreid.execution.fork_server` for a process. Ray starts this file as Python.

    python -I -S fork_client.py SOCKET MODULES [-s] SCRIPT ARGUMENTS

The server is there already, or the first client starts it; it imports MODULES (separated by commas) once. Each client
asks for a process that runs SCRIPT with ARGUMENTS with the client's environment, folder and streams, and ends when that
process does; its exit status does not tell the process's. Where there is no server, or it refuses, the client becomes
the process itself, as if Ray had started Python, with the options that Ray has put before SCRIPT. The server has the
same options, or is a copy of a command that has them.

This file imports neither this package nor any other outside Python, so that a client starts in milliseconds.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

READY = b"+"
"""What the server sends before a client sends its request, so that a client that waits for it in vain sends none."""
SIZE = 8
"""Bytes of a request's length, which precedes it."""
DESCRIPTORS = 4
"""Number of the client's descriptors that the process gets: the standard streams and the current folder."""
_PATIENCE = 40.0
"""Seconds for the server to import its modules. Ray waits 60 for a process to report; one that starts by itself does so
before it imports more than Ray."""
_BEGINNING = 1.0
"""Seconds between the appearance of the server's socket and the first time that it can be reached."""


def main(arguments: Sequence[str]) -> None:
    """Run a script in a process of the server, or else in this one; see the module.

    Args:
        arguments: Path of the server's socket, its modules, and the command to run.
    """
    place, modules, *command = arguments
    script = next((number for number, word in enumerate(command) if not word.startswith("-")), len(command))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it is for the process, which may not be known yet
    connection = process = None
    with contextlib.suppress(OSError, ValueError):
        connection = _reached(place, modules, command[:script])
        process = _requested(connection, command[script:]) if connection is not None else None
    if connection is None or process is None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.execv(sys.executable, [sys.executable, *command])
    connection.settimeout(None)
    signal.signal(signal.SIGTERM, lambda number, frame: _pass_on(number, process))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while connection.recv(1):  # the process holds the other end for as long as it lives, and sends nothing more
        pass


def _pass_on(number: int, process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _reached(place: str, modules: str, options: Sequence[str]) -> socket.socket | None:
    """Return a connection to the server, which is started if there is none yet; None if it has ended.

    Raises:
        OSError: It can be neither reached nor started.
    """
    ended = f"{place}.ended"
    until = time.monotonic() + _BEGINNING
    while not os.access(ended, os.F_OK):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(place)
            return connection
        except FileNotFoundError:
            _start(place, modules, options)
        except ConnectionRefusedError:  # it does not listen yet, or no more
            if time.monotonic() > until:
                os.close(os.open(ended, os.O_WRONLY | os.O_CREAT, 0o600))  # later clients need not wait
            time.sleep(0.01)
        connection.close()
    return None


def _start(place: str, modules: str, options: Sequence[str]) -> None:
    """Start the server, unless another client is about to: only one can create the socket.

    Raises:
        OSError: It cannot be started.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return
        raise
    listener.listen(64)
    if os.fork() == 0:
        os.setpgid(0, 0)  # when a worker ends, Ray ends its whole process group
        log = os.open(f"{place}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor, own in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(descriptor, own)
        os.set_inheritable(listener.fileno(), True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        # -P: as in Ray's own process, a file of the current folder hides no module.
        server = [*options, "-P", "-m", "rayreid.execution.fork_server", str(listener.fileno()), *modules.split(",")]
        # Numerical libraries read the number of threads when they are loaded, and start them: these would be lost in
        # a forked process, and waited for.
        os.execve(sys.executable, [sys.executable, *server], {**os.environ, "OMP_NUM_THREADS": "1"})
    listener.close()


def _requested(connection: socket.socket, command: Sequence[str]) -> int | None:
    """Return the process that the server has started for a command; None if it has started none.

    Raises:
        OSError: The server did not answer in time, or is gone.
    """
    if connection.recv(1) != READY:
        return None
    text = json.dumps({"command": command, "environment": dict(os.environ), "group": os.getpgrp()}).encode()
    folder = os.open(".", os.O_RDONLY)
    try:
        socket.send_fds(connection, [len(text).to_bytes(SIZE, "big")], [0, 1, 2, folder])
        connection.sendall(text)
    finally:
        os.close(folder)
    answer = connection.recv(32)
    return int(answer) if answer else None


if __name__ == "__main__":
    main(sys.argv[1:])
