"""Ray's `symmetric-run` for machines that jobs and users share.

`ray symmetric-run` starts the same command on every node: the head starts Ray, waits for the others, runs a program and
stops Ray; the others join the head. Ray's own command takes each machine for its own, in ways that no option changes:

- It refuses to start where any other Ray runs, including that of another user.
- It ends with `ray stop`, which ends all Rays of the user on the machine, including those of other jobs.
- It decides by the machine's addresses whether it is the head, and fails where a name resolves to 127.0.1.1.
- It exits with status 0 if Ray could not be started.
- A signal ends it, and leaves the program and Ray behind.
- A node that joined stays for a minute after the head has gone.

So the functions here run Ray's command with these steps replaced. They belong to Ray's private parts (see
`rayreid.execution.ray_internals`): check them before you raise Ray's upper bound.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil

from rayreid.errors import UserError, one_line

_MARK = "RAYREID_RAY_OF"
_START_SECONDS = 300
"""How long the nodes wait for one another, in seconds: imports from a busy network file system may take minutes."""
_POLL_SECONDS = 1.0
_REFUSED_SECONDS = 3.0
_SILENT_SECONDS = 60.0
_STOP_SECONDS = 15.0
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_INTERRUPTED = 130


class Program:
    """A program that ends well when it is interrupted: signals that ask this process to end interrupt the program."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None
        self._begun = self._stopping = False

    def run(self, command: Sequence[str]) -> int:
        """Run the program, and return its exit status."""
        self._begun = True
        # A session of its own: a batch system that signals the group of this process does not reach the program twice.
        with subprocess.Popen(command, start_new_session=True, preexec_fn=_hear_interrupts) as self._running:
            if self._stopping:
                self._running.send_signal(signal.SIGINT)
            status = self._running.wait()
        return status if status >= 0 else 128 - status

    def stop(self) -> None:
        """Interrupt the program.

        Raises:
            KeyboardInterrupt: It does not run yet.
        """
        if self._stopping:
            return
        self._stopping = True
        if not self._begun:
            raise KeyboardInterrupt
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(signal.SIGINT)


def run_here(command: Sequence[str]) -> int:
    """Run a program that starts its own Ray, and return its exit status; signals interrupt it."""
    program = Program()
    with hearing(program.stop):
        return program.run(command)


def answers(address: str) -> bool:
    """Return whether something listens at `host:port`."""
    return refusal_of(address) is None


def refusal_of(address: str) -> OSError | None:
    """Return why nobody answers at `host:port`; None if somebody does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        return error
    return None


class Absence:
    """Tells when a head has gone for good: a network may fail for a moment, and a busy machine be slow to answer.

    A head whose machine refuses the connection has gone if it does so for `_REFUSED_SECONDS`; one that does not answer
    at all, if it is silent for `_SILENT_SECONDS`.

    Args:
        address: `host:port` of the head.
    """

    def __init__(self, address: str):
        self._address = address
        self._since: float | None = None

    def lasts(self) -> bool:
        """Ask the head, and return whether it has gone."""
        refusal = refusal_of(self._address)
        if refusal is None:
            self._since = None
            return False
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        refused = isinstance(refusal, ConnectionRefusedError)
        return now - self._since >= (_REFUSED_SECONDS if refused else _SILENT_SECONDS)


def symmetric_run(
    address: str, nodes: int, head: bool, options: Sequence[str], folder: Path, command: Sequence[str]
) -> int:
    """Start Ray on this node, and run a program on the head; return when the program has ended.

    Args:
        address: `host:port` of the head.
        nodes: Number of nodes.
        head: Whether this node is the head.
        options: Options of `ray start`, which decide its ports and resources.
        folder: Folder for this node's Ray, on its own disk.
        command: The program.

    Returns:
        The program's exit status; 130 if a signal came before it began; 0 on the other nodes.

    Raises:
        UserError: Ray could not be started, or a node did not join.
    """
    os.environ["RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"] = str(_START_SECONDS)  # read on import
    os.environ["RAY_ADDRESS"] = address
    from ray.scripts import symmetric_run as script

    node = _Node(address, folder)
    steps = {
        "check_ray_already_started": lambda: False,
        "subprocess": SimpleNamespace(run=node.run, CalledProcessError=subprocess.CalledProcessError),
        "psutil": SimpleNamespace(net_if_addrs=lambda: _addresses(address) if head else {}),
    }
    arguments = ["--address", address, "--min-nodes", str(nodes), f"--temp-dir={folder}", *options, "--", *command]
    with hearing(node.asked_to_stop), _replaced(script, steps), _replaced(sys, {"argv": ["ray", *arguments]}):
        try:
            script.symmetric_run.main(arguments, standalone_mode=False)
        except SystemExit:
            pass  # its status is the program's, or that of a signal during Ray's start
        except Exception as error:  # Ray's command raises one of click's, without a promise
            node.fault = node.fault or f"Ray could not be started on {nodes} nodes: {one_line(error)}"
        finally:
            node.stop()
    if node.fault:
        raise UserError(node.fault)
    return node.status if head else 0


class _Node:
    """The processes that Ray's command starts on one node.

    Attributes:
        status: Exit status of the program; that of an interruption if it did not run.
        fault: Reason why Ray could not be started; "" if it was.
    """

    def __init__(self, address: str, folder: Path):
        self._address, self._folder, self._program, self._staying = address, folder, Program(), False
        self.status, self.fault = _INTERRUPTED, ""

    def run(self, command: Sequence[str], **options: bool) -> SimpleNamespace:
        """Run what Ray's command asks for: `ray start`, the program, or `ray stop`."""
        match list(command):
            case ["ray", "start", "--head", *rest]:
                self._ended(self._ray_start("--head", *rest), lambda: False)
            case ["ray", "start", *rest]:
                # The program on the head still needs this node while it ends, so the head alone hears of signals.
                self._staying = True
                self._ended(self._ray_start(*rest), Absence(self._address).lasts)
            case ["ray", "stop"]:
                self.stop()
            case program:
                _hear(self.asked_to_stop)  # Ray has replaced the handlers
                self.status = self._program.run(program)
        return SimpleNamespace(returncode=self.status)

    def asked_to_stop(self) -> None:
        """Interrupt the program, or the start of Ray; a node that has joined stays until the head has gone."""
        if not self._staying:
            self._program.stop()

    def stop(self) -> None:
        """End all processes of this node's Ray, and no others."""
        import ray

        ray.shutdown()  # Ray's command connected to wait for the nodes
        found = [process for process in psutil.process_iter() if self._is_ours(process)]
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            _, found = psutil.wait_procs(found, _STOP_SECONDS)

    def _ray_start(self, *options: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            _MARK: str(self._folder),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # there is no service to hand over
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        environment.pop("RAY_ADDRESS", None)
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _ended(self, process: subprocess.Popen[bytes], over: Callable[[], bool]) -> None:
        """Wait until `ray start` has ended, or until the cluster is over."""
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
            if over():
                return
        if process.returncode:
            reason = one_line(self._log.read_text(errors="replace"), "last", limit=300)
            self.fault = f"Ray could not be started on {socket.gethostname()}: {reason}"
            raise subprocess.CalledProcessError(process.returncode, "ray start")

    @property
    def _log(self) -> Path:
        return self._folder / "ray-start.log"

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK) == str(self._folder)
        except (psutil.Error, OSError):  # another user's, or gone
            return False


@contextlib.contextmanager
def hearing(stop: Callable[[], None]) -> Iterator[None]:
    """Call a function at signals that ask this process to end, within a `with` block."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _hear(stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hear(stop: Callable[[], None]) -> None:
    for number in _SIGNALS:
        signal.signal(number, lambda *_: stop())


def _hear_interrupts() -> None:
    """Let a child hear SIGINT: children of a shell's background ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _addresses(address: str) -> dict[str, list[SimpleNamespace]]:
    """Return addresses in the form of `psutil.net_if_addrs`, of which the given one is this machine's."""
    host = address.rpartition(":")[0].strip("[]")
    return {"": [SimpleNamespace(family=socket.AF_INET, address=host)]}


@contextlib.contextmanager
def _replaced(place: object, values: dict[str, object]) -> Iterator[None]:
    before = {name: getattr(place, name) for name in values}
    for name, value in values.items():
        setattr(place, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)
