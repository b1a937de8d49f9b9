"""What can happen to a run: its processes die, its disk fills, its storage's clock jumps, MLflow goes away."""

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from soaking.world import Command, Server

_PARTS = {
    "worker": ("RayTrainWorker", "MapWorker", "ray::Scorer", "ray::_"),
    "controller": ("TrainController",),
    "raylet": ("raylet/raylet",),
    "gcs": ("gcs_server",),
}
"""What stands in the command line of a part of Ray."""
_BALLAST = ".soak-ballast"
_JUMP_SECONDS = 40.0  # longer than a lease lasts


@dataclass(frozen=True)
class Fault:
    """A fault that took place.

    Attributes:
        kind: Its name.
        what: What exactly it was.
        seconds: How long it lasted.
    """

    kind: str
    what: str
    seconds: float = 0.0


def kill_driver(command: Command, server: Server, draw: random.Random) -> Fault | None:
    """Kill the driver alone; Ray and the workers notice by themselves."""
    command.kill(everything=False)
    return Fault("driver", "killed")


def kill_tree(command: Command, server: Server, draw: random.Random) -> Fault | None:
    """Kill the driver and all that it has started, as a machine that loses its power does."""
    command.kill(everything=True)
    return Fault("tree", "killed")


def killing(part: str) -> Callable[[Command, Server, random.Random], Fault | None]:
    """Return the fault that kills one process of a part of Ray."""

    def kill_part(command: Command, server: Server, draw: random.Random) -> Fault | None:
        found = []
        for process in command.tree()[1:]:
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if any(word in line for word in _PARTS[part]):
                    found.append((process, line))
        if not found:
            return None
        victim, line = draw.choice(found)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
        return Fault(part, f"killed {line[:40]}")

    return kill_part


def fill_disk(command: Command, server: Server, draw: random.Random) -> Fault | None:
    """Leave no byte on the disk of the output root for some seconds, or until the command has ended."""
    began, seconds = time.monotonic(), draw.uniform(2, 10)
    ballast = command.root.parent / _BALLAST
    try:
        while time.monotonic() - began < seconds and command.status is None:
            try:
                with ballast.open("ab", buffering=0) as stream:
                    stream.write(bytes(2**16))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                time.sleep(0.05)  # and take what is freed meanwhile
    finally:
        ballast.unlink(missing_ok=True)
    return Fault("disk", "full", time.monotonic() - began)


def jump_clock(command: Command, server: Server, draw: random.Random) -> Fault | None:
    """Set back or forward the times of all leases and notes, as a storage whose clock jumps shows them."""
    jump = draw.choice((-_JUMP_SECONDS, _JUMP_SECONDS))
    moved = 0
    for path in command.root.glob("**/*"):
        with contextlib.suppress(OSError):
            if path.is_file() and path.suffix not in (".safetensors", ".arrow", ".pt"):
                known = path.stat()
                os.utime(path, (known.st_atime + jump, known.st_mtime + jump))
                moved += 1
    return Fault("clock", f"{jump:+.0f} s for {moved} files") if moved else None


def restart_mlflow(command: Command, server: Server, draw: random.Random) -> Fault | None:
    """Kill the MLflow server, and start it again some seconds later."""
    began = time.monotonic()
    server.kill()
    time.sleep(draw.uniform(0, 15))
    server.start()
    return Fault("mlflow", "killed and started again", time.monotonic() - began)


FAULTS: dict[str, Callable[[Command, Server, random.Random], Fault | None]] = {
    "driver": kill_driver,
    "tree": kill_tree,
    **{part: killing(part) for part in _PARTS},
    "disk": fill_disk,
    "clock": jump_clock,
    "mlflow": restart_mlflow,
}
"""By name: each does its work on a running command, and returns None if there was nothing to do it to."""

KILLS = ("driver", "tree", *_PARTS)
