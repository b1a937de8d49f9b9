"""Stages that are disturbed at each operation of the disk, gone on with by a second command, and compared.

A forked child runs the stage on a `disturbed_disk.Disk` and is killed. What it leaves, and what each loss of power
would leave, are states of the disk. From each, a second command makes the artifact, and what that leaves is compared
with the results of an undisturbed run. Errors are raised in this process. The clocks that show in files stand still, so
a state that recurs is examined once.
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from crash_scenarios import Scenario, made, scenarios, settle_clocks
from disk_calls import disturbed
from disturbed_disk import FAULTS, LOSSES, Disk, Disturbance, Tree, tree_of, write_tree
from rayreid.diagnostics.leftovers import leftovers
from rayreid.disk_faults import as_storage_error
from rayreid.errors import UserError
from rayreid.files import TEMPORARY
from rayreid.storage import contents
from rayreid.storage.contents import LEASE, RECORD, verify
from rayreid.storage.metrics_log import MARK, Journal

REMEDIES = ("again", "permit", "see RAYREID_ROOT", "remove ", "move it away", "restore")
"""What one of in each message says what to do."""

_PASSING = ("seconds", "resumed", "time", "gpu_hours", "images_per_second", "wait", "seconds_epoch")
"""Facts and metrics that say how long and in how many pieces a run took."""

_NOT_COMPARED = ("run.json", MARK)
_UNIQUE = re.compile(r"[0-9a-f]{32}|(?<=damaged-)[0-9a-f]{8}")
_TOKEN = re.compile(rb"[0-9a-f]{32}")
_SECONDS = 120
_HOUR = 3600


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        line: What it printed; "" if it made the artifact.
        trace: Its traceback; "" if there is none.
        operations: The disk's operations.
    """

    line: str = ""
    trace: str = ""
    operations: Sequence[str] = ()

    def __str__(self) -> str:
        return self.line or self.trace or "well"


class CrashPoints:
    """The crash points of a scenario.

    Args:
        scenario: The scenario.
        folder: An empty folder.
        root: The output root, if it is to lie elsewhere; it does not exist yet.

    Attributes:
        operations: The operations of an undisturbed run.
        points: Number of disturbances so far: an operation, and what happened at it.
        states: Number of different states of the disk from which a second command went on.
    """

    def __init__(self, scenario: Scenario, folder: Path, root: Path | None = None):
        self.scenario, self._folder = scenario, folder
        self.root = root or folder / "root"
        self._syncs = root is not None
        self.operations: Sequence[str] = ()
        self.points = 0
        self._left_at = folder / "left"
        self._patch = pytest.MonkeyPatch()
        self._threads = torch.get_num_threads()
        self._known: dict[str, list[str]] = {}

    def __enter__(self) -> "CrashPoints":
        try:
            return self._entered()
        except BaseException:
            self.__exit__()
            raise

    def _entered(self) -> "CrashPoints":
        settle_clocks(self._patch)
        torch.set_num_threads(1)  # children that are forked cannot use a pool of threads
        self.scenario.setting(self._patch, self._folder)
        self.root.mkdir()
        self.scenario.prepare(self.root)
        self._before = tree_of(self.root)
        ended = self._command()  # in this process, so that the children are warm
        assert not ended.line and not ended.trace, str(ended)
        self.operations, self._expected = ended.operations, self._results()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.undo()
        torch.set_num_threads(self._threads)

    @property
    def places(self) -> list[int]:
        """The operations to disturb: all, but of the writes of one file that follow one another the first and last."""
        same = [False, *(one == other for one, other in pairwise(self.operations)), False]
        return [place for place in range(len(self.operations)) if not (same[place] and same[place + 1])]

    @property
    def states(self) -> int:
        return len(self._known)

    def at(self, place: int) -> list[str]:
        """Disturb one operation in each way, and go on; return what is wrong.

        Args:
            place: The operation's number.
        """
        wrong = []
        for how, tree in self._killed(place).items():
            wrong += [f"{how}: {one}" for one in self.gone_on(tree)]
        for fault in FAULTS:
            self.begin()
            ended = self._command(Disturbance(place, fault))
            wrong += [f"{fault}: {one}" for one in _bad(ended, self.root)]
            _leave_to_a_dead_process(self.root)
            wrong += [f"{fault}: {one}" for one in self.gone_on(tree_of(self.root))]
        return [f"{self.operations[place]} ({place}), {one}" for one in wrong]

    def _killed(self, place: int) -> dict[str, Tree]:
        """Kill a child at an operation, and return what that and each loss of power leave."""
        self.begin()
        child = os.fork()
        if not child:
            try:
                self._command(Disturbance(place, "kill"))
            finally:
                os._exit(1)
        status = _awaited(child)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{place}: status {status}"
        losses: dict[str, Tree] = pickle.loads(self._left_at.read_bytes())
        return {"kill": tree_of(self.root), **losses}

    def _note_losses(self, disk: Disk) -> None:
        self._left_at.write_bytes(pickle.dumps({name: disk.left(loss) for name, loss in LOSSES.items()}))

    @contextlib.contextmanager
    def stopped(self, place: int) -> Iterator[None]:
        """Have a child stand still at an operation within a `with` block, and kill it afterwards."""
        child = os.fork()
        if not child:
            try:
                self._command(Disturbance(place, "kill"), lambda disk: os.kill(os.getpid(), signal.SIGSTOP))
            finally:
                os._exit(1)
        status = _awaited(child, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"{place}: status {status}"
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def begin(self) -> None:
        """Have the root hold what lies there before the stage begins."""
        write_tree(self.root, self._before)

    def gone_on(self, left: Tree) -> list[str]:
        """Make the artifact from what is left, and return what is wrong."""
        write_tree(self.root, left)
        self.points += 1
        state = _state(self.root)
        if state not in self._known:
            ended = self._command()
            if ended.line or ended.trace:
                self._known[state] = [f"the second command ended: {ended}"]
            else:
                self._known[state] = _differences(self._expected, self._results())
        return self._known[state]

    def _command(self, disturbance: Disturbance | None = None, dying: Callable[[Disk], None] | None = None) -> Ended:
        """Make the artifact, and end as `rayreid.cli.main` does."""
        contents._whole.clear()
        line = trace = ""
        with disturbed(Disk(self.root, disturbance, dying or self._note_losses, self._syncs)) as disk:
            try:
                made(self.scenario.artifact(self.root))
            except UserError as error:
                line = str(error)
            except Exception as error:
                told = as_storage_error(error, self.root)
                line = str(told or "")
                trace = "" if told else traceback.format_exc()
        disk.check()
        return Ended(line, trace, disk.operations)

    def _results(self) -> dict[str, Any]:
        """Return what a command has left, in a form that can be compared."""
        artifact = self.scenario.artifact(self.root)
        assert artifact.complete
        clear_up(self.root)
        paths = sorted(self.root.rglob("*"))
        found = {str(path.relative_to(self.root)): None if path.is_dir() else _content(path) for path in paths}
        return {**found, "damaged": verify(artifact.path)}


def clear_up(root: Path) -> None:
    """Do what `rayreid doctor --repair --discard damaged` does, hours later."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            os.utime(path, ns=(then := path.stat().st_mtime_ns - 2 * _HOUR * 10**9, then))
    for _ in range(2):  # the first may move something aside
        for leftover in leftovers(root, frozenset({"damaged"})):
            if leftover.mend is not None:
                leftover.mend()


def _awaited(child: int, options: int = 0) -> int:
    """Return the status with which a child ended; in a time that is bounded."""
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG | options)
        if ended:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"a command took longer than {_SECONDS} s")


def _content(path: Path) -> Any:
    if path.name in _NOT_COMPARED:
        return "…"
    if path.name == RECORD:
        record = json.loads(path.read_text())
        names = [name for name in record["files"] if not name.endswith(".jsonl")]
        return _lasting(record["facts"]), record["recipe"], {name: record["files"][name] for name in sorted(names)}
    if path.suffix == ".jsonl":
        return [_lasting(row) for row in Journal(path).history()]
    return path.read_bytes()


def _lasting(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _PASSING}


def _leave_to_a_dead_process(root: Path) -> None:
    """Have a lease that could not be removed be that of a process that has ended, as this one would."""
    for path in root.rglob(LEASE):
        if (content := path.read_bytes()).endswith(b"}"):
            path.write_text(json.dumps({**json.loads(content), "started": 1}))


def _state(root: Path) -> str:
    """Return a hash of what matters for a command that goes on."""
    digest = hashlib.blake2b()
    for name, what in sorted((_UNIQUE.sub("*", name), what) for name, what in tree_of(root).items()):
        if name.endswith(LEASE) and isinstance(what, bytes) and what.endswith(b"}"):
            what = b"of a process that is gone"
        if name.endswith(TEMPORARY):  # the first that a writer does is to remove it
            what = what and b"unfinished"
        digest.update(f"{name} {type(what).__name__} {len(what or '')} ".encode())
        digest.update(_TOKEN.sub(b"*", what) if isinstance(what, bytes) else (what or "").encode())
    return digest.hexdigest()


def _bad(ended: Ended, root: Path) -> list[str]:
    """Return what is wrong with how a command ended whose disk failed."""
    if ended.trace:
        return [f"a traceback: {ended.trace}"]
    line = ended.line
    if line and ("\n" in line or str(root) not in line or not any(word in line for word in REMEDIES)):
        return [f"a bad message: {line!r}"]
    return []


def _difference(name: str, expected: Any, found: Any) -> str:
    if isinstance(expected, bytes):
        return f"{name} differs"
    return f"{name} differs: {expected} became {found}"


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    wrong = [f"{name} is left" for name in sorted(found.keys() - expected.keys())]
    # A mark that could not be written is no loss: MLflow gets the journal's rows again, which changes nothing there.
    wrong += [f"{name} is missing" for name in sorted(expected.keys() - found.keys()) if not name.endswith(MARK)]
    both = sorted(expected.keys() & found.keys())
    return wrong + [_difference(name, expected[name], found[name]) for name in both if expected[name] != found[name]]


def main() -> None:
    """Disturb the scenarios named on the command line (default: all) at all points."""
    import sys
    import tempfile

    for name in sys.argv[1:] or scenarios():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, CrashPoints(scenarios()[name], Path(folder)) as points:
            print(f"{name}: {len(points.operations)} operations, {time.monotonic() - began:.1f} s before", flush=True)
            for place in points.places:
                for one in points.at(place):
                    print("   ", one, flush=True)
            spent = f"{time.monotonic() - began:.1f} s, {sum(os.times()[:4]):.1f} s of a core"
            print(f"{name}: {points.points} points, {points.states} states, {spent}", flush=True)


if __name__ == "__main__":
    main()
