"""A tracking store that goes away and comes back: nothing is missing afterwards, and nothing is there twice."""

import json
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from mlflow_server import Server
from rayreid.errors import UserError
from rayreid.storage.metrics_log import Journal, MetricsFeed
from rayreid.tracking import outage
from rayreid.tracking.outbox import Outbox
from rayreid.tracking.run import Run
from rayreid.tracking.tracker import Tracker


class Flaky:
    """A client whose store is away when told."""

    def __init__(self, client: MlflowClient):
        self.client, self.away, self.calls = client, False, 0

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*arguments, **named):
            self.calls += 1
            if self.away:
                raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)
            return method(*arguments, **named)

        return call


@pytest.fixture
def tracker(root, said, monkeypatch) -> Tracker:
    """All tests here share a database; a failed attempt keeps nobody from the next one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(outage, "_SILENT_SECONDS", 0.0)
    monkeypatch.setattr(outage, "_POLL_SECONDS", 0.01)
    opened = Tracker(root, "trials", said.append)
    opened.client = Flaky(opened.client)
    return opened


@pytest.fixture
def run(tracker) -> Run:
    return tracker.run("a run")


def log_everything(run: Run, folder: Path) -> None:
    """Something by each of a run's methods."""
    (folder / "weights.txt").write_text("w")
    run.params({"epochs": 3})
    run.tags({"stem": "ics"})
    run.metrics({"mAP": 0.25}, step=2)
    run.dataset("pool", "f" * 40, "/data/pool", {"images": 7}, "pretrain")
    run.figure(Figure(figsize=(1, 1)), "figures/loss.png")
    run.file(folder / "weights.txt", "weights")
    run.text("a: 1\n", "config.yaml")
    run.finish("FAILED")


def assert_everything(client: MlflowClient, run_id: str) -> None:
    found = client.get_run(run_id)
    assert found.data.params == {"epochs": "3"} and found.data.tags["stem"] == "ics"
    assert [(entry.step, entry.value) for entry in client.get_metric_history(run_id, "mAP")] == [(2, 0.25)]
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, json.loads(dataset.dataset.profile)) == ("pool", {"images": 7})
    listed = {file.path for folder in (None, "weights", "figures") for file in client.list_artifacts(run_id, folder)}
    assert {"weights/weights.txt", "config.yaml", "figures/loss.png"} <= listed
    assert found.info.status == "FAILED"


def waiting(tracker: Tracker) -> int:
    return len(list(tracker.outboxes.rglob("*.json")))


def losses(client: MlflowClient, run_id: str) -> list[tuple[int, float]]:
    return [(entry.step, entry.value) for entry in client.get_metric_history(run_id, "loss")]


def test_what_is_logged_meanwhile_arrives_before_what_is_logged_next(tracker, run, tmp_path, said):
    tracker.client.away = True
    log_everything(run, tmp_path)
    assert waiting(tracker) == 8 and len(said) == 1 and "runs go on" in said[0]
    tracker.client.away = False
    run.tags({"late": "yes"})
    assert_everything(tracker.client, run.id)
    assert not (tracker.outboxes / run.id).exists() and said[1:] == [f"MLflow at {tracker.uri} answers again"]


def test_what_nobody_could_deliver_is_delivered_by_the_next_process_on_that_root(tracker, run, tmp_path, root):
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in range(3):
        journal.append({"step": step, "loss": 1.0 + step})
    feed = MetricsFeed(journal.path, run.id)
    run.follow(feed)
    feed.read()
    run.deliver()
    assert losses(tracker.client, run.id) == [(step, 1.0 + step) for step in range(3)]
    tracker.client.away = True
    journal.append({"step": 3, "loss": 4.0})
    feed.read()
    run.deliver()
    assert feed.pending
    run.unfollow(feed)
    log_everything(run, tmp_path)
    later = Tracker(root, "another experiment")
    assert_everything(later.client, run.id)
    assert losses(later.client, run.id) == [(step, 1.0 + step) for step in range(4)]
    assert waiting(tracker) == 0
    again = MetricsFeed(journal.path, run.id)
    again.read()
    assert not again.pending


def test_what_is_delivered_twice_is_there_once(tracker, run, tmp_path):
    tracker.client.away = True
    log_everything(run, tmp_path)
    tracker.client.away = False
    box = Outbox(tracker.outboxes / run.id)
    held = [entry.content for entry in box.entries() if entry.payload is None]
    run.deliver()
    for content in held:  # by a process that died before it could drop them
        box.put(content)
    run.deliver()
    assert_everything(tracker.client, run.id)


def test_while_it_is_away_it_is_not_asked_at_every_turn(tracker, run, monkeypatch):
    monkeypatch.setattr(outage, "_SILENT_SECONDS", 60.0)
    tracker.client.away, tracker.client.calls = True, 0
    for step in range(20):
        run.metrics({"mAP": 0.5}, step=step)
    assert tracker.client.calls == 1


def test_a_run_begins_as_soon_as_the_store_is_back(tracker, monkeypatch):
    tracker.client.away = True
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(tracker.client, "away", False))
    assert tracker.client.get_run(tracker.run("waited for").id).info.status == "RUNNING"


def test_a_run_is_not_begun_anew_because_the_store_is_away(tracker, run, monkeypatch):
    tracker.client.away = True
    monkeypatch.setattr(tracker.outage, "wait", lambda call: outage.Outage.wait(tracker.outage, call, 0.0))
    with pytest.raises(UserError, match="same command again"):
        tracker.resume(run.id)


def test_what_the_store_refuses_is_dropped_and_told(tracker, run, said, tmp_path):
    tracker.client.away = True
    run.params({"epochs": 3})
    run.file(tmp_path / "gone.txt")
    run.tags({"stem": "ics"})
    tracker.client.away = False
    tracker.client.log_batch(run.id, params=[])
    run.deliver()
    assert tracker.client.get_run(run.id).data.tags["stem"] == "ics"
    assert waiting(tracker) == 0 and "is dropped" in said[-2] + said[-1]


def test_what_is_owed_to_another_store_is_left(tracker, run, root, tmp_path, new_database, monkeypatch):
    tracker.client.away = True
    run.tags({"stem": "ics"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other/mlflow.db")
    new_database(tmp_path / "other")
    Tracker(root, "trials")
    assert waiting(tracker) == 1
    tracker.client.away = False
    run.deliver()
    assert waiting(tracker) == 0


# With a real server


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.stop()


@pytest.mark.slow
def test_a_real_server_that_is_stopped_and_started_again_has_everything_once(
    server, tmp_path, monkeypatch, said, capsys
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(outage, "_SILENT_SECONDS", 0.0)
    root = tmp_path / "root"
    with pytest.raises(UserError, match=r"does not answer.*MLFLOW_TRACKING_URI") as caught:
        Tracker(root, "trials")
    assert "\n" not in str(caught.value)

    server.start()
    tracker = Tracker(root, "trials", said.append)
    run = tracker.run("a run")
    journal = Journal(tmp_path / "metrics.jsonl")
    feed = MetricsFeed(journal.path, run.id)
    run.follow(feed)

    def train(steps: range) -> bool:
        """Steps of a training, and whether their rows were delivered."""
        for step in steps:
            journal.append({"step": step, "loss": 1.0 / (1 + step)})
        feed.read()
        run.deliver()
        return not feed.pending

    assert train(range(5))
    server.stop()
    assert not train(range(5, 10))
    run.tags({"warning": "collapsed"})
    server.start()
    assert train(range(10, 15))
    server.stop()
    assert not train(range(15, 20))
    run.unfollow(feed)
    log_everything(run, tmp_path)

    server.start()
    client = Tracker(root, "trials").client
    assert losses(client, run.id) == [(step, 1.0 / (1 + step)) for step in range(20)]
    assert client.get_run(run.id).data.tags["warning"] == "collapsed"
    assert_everything(client, run.id)
    assert waiting(tracker) == 0
    assert sum("runs go on" in line for line in said) == 2
    assert capsys.readouterr().out == ""  # the client would print two lines with addresses when a run ends
