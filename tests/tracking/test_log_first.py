"""A process that logs is really killed, at every point of writing, sending and dropping; the next one delivers.

The process is a fork of this one, and kills itself at one of its operations on files or on the store. What MLflow then
has is what it has of an undisturbed run that has come as far.
"""

import itertools
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from mlflow_server import Server
from rayreid.storage.metrics_log import Journal, MetricsFeed
from rayreid.tracking import outage
from rayreid.tracking.run import Run
from rayreid.tracking.tracker import Tracker

ON_FILES = [
    *((Path, name) for name in ("replace", "unlink", "rmdir", "mkdir", "write_bytes", "write_text")),
    *((os, name) for name in ("link", "fsync")),
]
OF_THE_STORE = ("log_batch", "log_inputs", "log_artifact", "set_terminated", "delete_tag")


class Program:
    """What a stage logs, one step after the other.

    Args:
        run: The run.
        folder: Folder of the journal and of the file that is logged.
    """

    def __init__(self, run: Run, folder: Path):
        folder.mkdir(exist_ok=True)
        self.run, self.journal = run, Journal(folder / "metrics.jsonl", 1)
        self.weights = folder / "weights.txt"
        self.weights.write_text("w")
        self.feed: MetricsFeed | None = None
        self.steps: list[Callable[[], None]] = [
            lambda: run.params({"epochs": 3, "lr": 0.5}),
            lambda: run.tags({"stem": "patchify", "error": "an earlier one"}),
            lambda: run.tags({"stem": "ics"}),
            lambda: run.dataset("pool", "f" * 40, "/data/pool", {"images": 7}, "pretrain"),
            self._follow,
            lambda: self._train(0),
            lambda: self._train(1),
            lambda: run.text("a: 1\n", "config.yaml"),
            lambda: self._train(1),  # by a worker that was restarted
            lambda: self._train(2),
            self._unfollow,
            lambda: run.file(self.weights, "weights"),
            lambda: run._log("artifact", {"name": "figures/loss.png"}, b"drawn"),
            lambda: run.finish("FAILED"),
            lambda: run.begin_again(),
            lambda: run.tags({"stem": "conv"}),
            lambda: run.metrics({"mAP": 0.25}),
            lambda: run.finish(),
        ]

    def go_on(self, first: int = 0, begin: Callable[[int], None] = lambda number: None) -> None:
        """Take the steps from one on; `begin` gets the number of each before it."""
        for number, step in enumerate(self.steps[first:], first):
            begin(number)
            step()

    def _follow(self) -> None:
        self.feed = MetricsFeed(self.journal.path, self.run.id)
        self.run.follow(self.feed)

    def _train(self, step: int) -> None:
        if self.feed is None:  # in the process that goes on
            self._follow()
        self.journal.append({"step": step, "loss": 1.0 + step})
        self.feed.read()
        self.run.deliver()

    def _unfollow(self) -> None:
        self.run.unfollow(self.feed or MetricsFeed(self.journal.path, self.run.id))


def state(client: MlflowClient, run_id: str) -> dict:
    """Everything that MLflow has of a run, apart from the times."""
    found = client.get_run(run_id)
    names = sorted({*found.data.metrics})
    files = list(client.list_artifacts(run_id))
    inner = [one for file in files if file.is_dir for one in client.list_artifacts(run_id, file.path)]
    return {
        "params": found.data.params,
        "tags": {key: value for key, value in found.data.tags.items() if key in ("stem", "error")},
        "status": found.info.status,
        "last": found.data.metrics,
        "history": {name: [(one.step, one.value) for one in client.get_metric_history(run_id, name)] for name in names},
        "datasets": [
            (one.dataset.name, one.dataset.digest, json.loads(one.dataset.profile), [tag.value for tag in one.tags])
            for one in found.inputs.dataset_inputs
        ],
        "artifacts": {file.path: file.file_size for file in (*files, *inner) if not file.is_dir},
    }


class Killing:
    """Counts the operations of a process, and kills it at one of them."""

    def __init__(self, at: int | None):
        self.at, self.done = at, itertools.count()
        self.newest = 0

    def begin(self) -> None:
        for owner, name in (*ON_FILES, *((MlflowClient, name) for name in OF_THE_STORE)):
            setattr(owner, name, self._around(getattr(owner, name)))

    def point(self) -> None:
        self.newest = next(self.done)
        if self.newest == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _around(self, function: Callable) -> Callable:
        def call(*arguments, **named):
            self.point()
            result = function(*arguments, **named)
            self.point()
            return result

        return call


def killed(tracker: Tracker, run: Run, folder: Path, at: int | None) -> tuple[int, int, bool]:
    """Run the program in a process that is killed at a point.

    Returns:
        The step in which it was, the number of its points if it came to the end, and whether it did.
    """
    note = folder.parent / f"{folder.name}.note"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for engine in SqlAlchemyStore._engine_map.values():
                engine.dispose(close=False)  # the connections are the parent's
            killing = Killing(at)
            program = Program(run, folder)
            with note.open("w") as stream:

                def begin(number: int) -> None:
                    print(number, file=stream, flush=True)

                killing.begin()
                program.go_on(begin=begin)
                print(killing.newest, file=stream, flush=True)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    assert ended in (0, signal.SIGKILL)
    lines = [int(line) for line in note.read_text().split()]
    return (len(lines) - 1, lines[-1], True) if ended == 0 else (lines[-1], 0, False)


@pytest.fixture
def open_tracker(root, monkeypatch) -> Callable[[], Tracker]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(outage, "_SILENT_SECONDS", 0.0)
    return lambda: Tracker(root, "trials")


def stages(tracker: Tracker, folder: Path) -> list[dict]:
    """What MLflow has of an undisturbed run, before each step and at the end."""
    run = tracker.run("undisturbed")
    seen: list[dict] = []
    Program(run, folder).go_on(begin=lambda number: seen.append(state(tracker.client, run.id)))
    return [*seen, state(tracker.client, run.id)]


def check_points(open_tracker: Callable[[], Tracker], folder: Path, chosen: Callable[[int], range]) -> int:
    """Kill the program at the chosen ones of its points, and compare; return their number."""
    tracker = open_tracker()
    expected = stages(tracker, folder / "undisturbed")
    run = tracker.run("counted")
    _, points, ended = killed(tracker, run, folder / "counted", None)
    assert ended and state(tracker.client, run.id) == expected[-1]
    for at in chosen(points):
        run = tracker.run(f"killed at {at}")
        place = folder / str(at)
        step, _, ended = killed(tracker, run, place, at)
        assert not ended
        following = open_tracker()
        assert not following.deliverer.undelivered()
        found = state(following.client, run.id)
        assert found in (expected[step], expected[step + 1]), (at, step, found)
        left = [path.name for path in (following.outboxes / run.id).glob("*.json")]
        assert not left, (at, step, left)
        again = Program(Run(following, run.id), place)
        again.go_on(step + (found == expected[step + 1] != expected[step]))
        assert state(following.client, run.id) == expected[-1], (at, step)
    print(f"killed at {len(chosen(points))} of {points + 1} points")
    return len(chosen(points))


def test_a_process_killed_at_some_points_loses_nothing_and_leaves_nothing_twice(open_tracker, tmp_path):
    assert check_points(open_tracker, tmp_path, lambda points: range(7, points, 31)) > 10


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_a_process_killed_at_every_point_loses_nothing_and_leaves_nothing_twice(open_tracker, tmp_path, first):
    assert check_points(open_tracker, tmp_path, lambda points: range(first, points + 1, 4)) > 75


@pytest.mark.slow
@pytest.mark.thorough
def test_so_it_is_with_a_server(tmp_path, monkeypatch):
    server = Server(tmp_path)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    try:
        (tmp_path / "root").mkdir()
        assert check_points(lambda: Tracker(tmp_path / "root", "trials"), tmp_path, lambda points: range(3, points, 40))
    finally:
        server.stop()
