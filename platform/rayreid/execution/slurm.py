"""A job on the nodes of a Slurm allocation; `srun` starts this module once per node (`jobs/slurm.sbatch`).

On one node, the program starts its own private Ray (`rayreid.execution.private_ray`). On several nodes, Ray's
`symmetric-run` starts one Ray for the job, and the program on the first node. That Ray listens on the network, and
requires a token of its own. Its nodes find its address and the token in a folder on the shared storage that only the
user can read, its *meeting folder*.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from rayreid.errors import UserError
from rayreid.execution.machine import usable_cpus
from rayreid.execution.port_block import claimed
from rayreid.execution.private_ray import write_token
from rayreid.execution.ray_folder import SESSIONS, ray_folder
from rayreid.execution.ray_internals import reread_authentication
from rayreid.execution.symmetric_run import Program, answers, hearing, run_here, symmetric_run
from rayreid.files import write_atomically

_USAGE = "usage: python -m rayreid.execution.slurm FOLDER COMMAND …"
_MEETING_SECONDS = 300.0
_POLL_SECONDS = 0.5
_ADDRESS, _STATUS = "address", "status"


@dataclass(frozen=True)
class Place:
    """This process's place in the job.

    Attributes:
        job: Number of the job.
        nodes: Number of nodes of the job step.
        node: Number of this node, from 0.
    """

    job: int
    nodes: int
    node: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place":
        """Read the place from the variables that `srun` sets.

        Raises:
            UserError: A variable is missing or no number, or there is more than one process per node.
        """
        names = ("SLURM_JOB_ID", "SLURM_NNODES", "SLURM_NODEID", "SLURM_NTASKS")
        unset = [name for name in names if not environment.get(name, "").isdecimal()]
        if unset:
            raise UserError(
                f"{', '.join(unset)}: not set by srun here; start jobs/slurm.sbatch with sbatch, or with bash within "
                "an allocation of salloc"
            )
        job, nodes, node, tasks = (int(environment[name]) for name in names)
        if tasks != nodes:
            raise UserError(
                f"{tasks} tasks on {nodes} nodes: a job needs one per node (sbatch --ntasks-per-node=1); each uses all "
                "GPUs and CPUs that the job has on its node"
            )
        return cls(job, nodes, node)


def run_on_node(place: Place, meeting: Path, command: Sequence[str]) -> int:
    """Run this node's part of the job, and return its exit status.

    Args:
        place: This node's place in the job.
        meeting: A folder on storage that all nodes see and only this user can read.
        command: The program; on several nodes the first one runs it.

    Raises:
        UserError: Ray could not be started, or the nodes did not find one another.
    """
    if place.nodes == 1:
        os.environ.pop("RAY_ADDRESS", None)  # this job's program uses this job's node
        return run_here(command)
    head = place.node == 0
    with ray_folder() as folder, claimed(place.job) as ports:
        if head:
            write_token(meeting)
            address = f"{own_address(os.environ)}:{ports.head}"
            write_atomically(meeting / _ADDRESS, address)
        else:
            address = _awaited(meeting)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(meeting / "token")}
        os.environ.pop("RAY_AUTH_TOKEN", None)
        reread_authentication()
        cpus = usable_cpus()
        options = [
            *ports.options,
            *([f"--num-cpus={cpus}"] if cpus else []),
            *(["--include-dashboard=false", f"--ray-client-server-port={ports.client}"] if head else []),
            "--disable-usage-stats",
        ]
        return symmetric_run(address, place.nodes, head, options, folder / SESSIONS, command)


def own_address(environment: Mapping[str, str]) -> str:
    """Return the address by which the other nodes reach this one: the one that Slurm uses, if it is this node's.

    A machine may have several, and its own name may mean a loopback address there.
    """
    from ray.util import get_node_ip_address

    own = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    named = [environment.get("SLURM_LAUNCH_NODE_IPADDR", "")]
    with contextlib.suppress(OSError):
        named.append(socket.gethostbyname(environment.get("SLURMD_NODENAME", "")))
    return next((address for address in named if address in own), None) or get_node_ip_address()


def _awaited(meeting: Path) -> str:
    """Return the head's address as soon as Ray answers there.

    Raises:
        UserError: The head ended first, or did not start.
    """
    until = time.monotonic() + _MEETING_SECONDS
    while not (meeting / _STATUS).exists():
        if (meeting / _ADDRESS).exists():
            address = (meeting / _ADDRESS).read_text()
            if answers(address):
                return address
            late = (
                f"Ray on the job's first node did not answer at {address}: a firewall between nodes must open its port"
            )
        else:
            late = (
                f"the job's first node did not write its address to {meeting}: all nodes need RAYREID_ROOT on the same "
                "shared storage"
            )
        if time.monotonic() > until:
            raise UserError(f"waited {_MEETING_SECONDS:.0f} s; {late}")
        time.sleep(_POLL_SECONDS)
    raise UserError("the job's first node ended before Ray started; its message says why")


def main(arguments: Sequence[str]) -> int:
    """Run this node's part, print an error in one line, and return the exit status.

    The first node writes the status into the meeting folder: that of `srun` is the highest of all nodes.
    """
    try:
        if len(arguments) < 2:
            raise UserError(_USAGE)
        place = Place.of(os.environ)
    except UserError as error:
        print(f"rayreid: {error}", file=sys.stderr)
        return 2
    meeting, command = Path(arguments[0]), arguments[1:]
    try:
        with hearing(Program().stop):  # signals that come before anything runs
            status = run_on_node(place, meeting, command)
    except UserError as error:
        print(f"rayreid: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    if place.node == 0:
        write_atomically(meeting / _STATUS, f"{status}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
