"""Blocks of TCP ports, of which each job on a machine takes one for its Ray."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from rayreid.errors import UserError

_VARIABLE = "RAYREID_PORTS"
_USUAL = "20000-31999"  # below Linux's ephemeral ports, which begin at 32768, and above Ray's own
_SIZE = 500
_SERVICES = (
    "node-manager-port",
    "object-manager-port",
    "metrics-export-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "runtime-env-agent-port",
)


@dataclass(frozen=True)
class PortBlock:
    """The ports of one job on one machine.

    Attributes:
        first: The first port; this block's owner holds it, and nobody connects to it.
    """

    first: int

    @property
    def head(self) -> int:
        """Return the port of the head's GCS."""
        return self.first + 1

    @property
    def client(self) -> int:
        """Return the port of the head's server for Ray Client, which starts with the head."""
        return self.first + 2

    @property
    def options(self) -> list[str]:
        """Return the options of `ray start` that keep a node's servers and workers within the block."""
        services = [f"--{name}={self.client + 1 + number}" for number, name in enumerate(_SERVICES)]
        return [*services, f"--min-worker-port={self.services.stop}", f"--max-worker-port={self.first + _SIZE - 1}"]

    @property
    def services(self) -> range:
        """Return the ports of the servers, without those of workers, of which Ray leaves out used ones."""
        return range(self.head, self.client + 1 + len(_SERVICES))


@contextlib.contextmanager
def claimed(number: int) -> Iterator[PortBlock]:
    """Hold a block of ports that no other job of this machine has, of whichever user.

    A block belongs to the process that has bound its first port: the system lets only one process do so, and frees the
    port when that process ends, however it ends.

    Args:
        number: A number of the job, such as its id. The search for a free block begins there, so that jobs rarely try
            the same one.

    Raises:
        UserError: `RAYREID_PORTS` is no range of ports, or no block in it is free.
    """
    blocks = _blocks()
    for turn in range(len(blocks)):
        block = PortBlock(blocks[(number + turn) % len(blocks)])
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(_bound(block.first))
                for port in block.services:
                    _bound(port).close()
            except OSError:
                continue
            yield block
            return
    raise UserError(
        f"{_VARIABLE}={os.environ.get(_VARIABLE, _USUAL)}: each block of {_SIZE} ports in this range has one that is "
        "in use on this machine (ss -ltn lists them); set the variable to another range"
    )


def _blocks() -> range:
    """Return the first port of each block."""
    said = os.environ.get(_VARIABLE) or _USUAL
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", said)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1024 <= first <= last <= 65535 or last - first + 1 < _SIZE:
        raise UserError(
            f"{_VARIABLE}={said}: write a range of at least {_SIZE} ports between 1024 and 65535, such as {_USUAL}"
        )
    return range(first, last - _SIZE + 2, _SIZE)


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    try:
        made.bind(("", port))
    except OSError:
        made.close()
        raise
    return made
