"""The one way to MLflow: order between threads and processes, and entries that cannot be sent."""

import contextlib
import errno
import json
import os
import shutil
import signal
import threading
import time

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from rayreid.errors import UserError
from rayreid.storage.lease import Lease
from rayreid.storage.metrics_log import Journal, MetricsFeed
from rayreid.tracking import deliverer, outage, turns
from rayreid.tracking.entries import entry
from rayreid.tracking.outbox import Outbox
from rayreid.tracking.run import Run
from rayreid.tracking.store import send
from rayreid.tracking.tracker import Tracker


@pytest.fixture
def tracker(root, said, monkeypatch) -> Tracker:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(outage, "_SILENT_SECONDS", 0.0)
    yield Tracker(root, "trials", said.append)
    shutil.rmtree(root / "undelivered", ignore_errors=True)


@pytest.fixture
def run(tracker) -> Run:
    return tracker.run("a run")


def tags_of(run: Run) -> dict[str, str]:
    return run.client.get_run(run.id).data.tags


def forked(work) -> int:
    """Do some work in a process of its own, and return its id."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            for engine in SqlAlchemyStore._engine_map.values():
                engine.dispose(close=False)  # the connections are the parent's
            work()
            os._exit(0)
        os._exit(1)
    return child


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def waiting(run: Run) -> list[str]:
    return [entry.content["kind"] for entry in Outbox(run.tracker.outboxes / run.id).entries()]


# Order


def test_entries_lie_on_the_disk_before_they_are_sent(run, monkeypatch):
    seen = []
    monkeypatch.setattr(deliverer, "send", lambda client, run_id, kind, *what: seen.append((kind, waiting(run))))
    run.tags({"a": "b"})
    run.text("drawn", "a.txt")
    assert seen == [("tags", ["tags"]), ("artifact", ["artifact"])]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("params", {"epochs": "3"}),
        ("tags", {"stem": "ics"}),
        ("rows", [{"step": 1, "time": 10.5, "loss": 0.5, "none": float("nan")}]),
        ("dataset", {"name": "p", "digest": "f", "source": "/p", "profile": {"images": 1}, "context": "pretrain"}),
        ("artifact", {"name": "figures/payload.txt"}),
        ("resume", {}),
        ("end", {"status": "FAILED", "time": 10.5}),
    ],
)
def test_what_is_sent_twice_is_there_once(run, tmp_path, kind, what):
    (tmp_path / "payload.txt").write_text("drawn")
    run.tags({"error": "no"})
    states = []
    for _ in range(2):
        send(run.client, run.id, kind, what, tmp_path / "payload.txt")
        found = run.client.get_run(run.id).to_dictionary()
        if kind == "resume":  # MLflow notes the time of each change of a state
            found["info"].pop("end_time")
        history = [len(run.client.get_metric_history(run.id, name)) for name in found["data"]["metrics"]]
        files = [file.path for file in run.client.list_artifacts(run.id, "figures")]
        states.append(json.dumps([found, history, files], default=str))
    assert states[0] == states[1]


def test_threads_of_a_process_take_turns(run, monkeypatch):
    sent, failures = [], []

    def record(client, run_id, kind, what, payload):
        names = [path.name for path in Outbox(run.tracker.outboxes / run.id)._paths()]
        time.sleep(0.001)
        sent.append((names[0], what))

    def work(name):
        try:
            for number in range(20):
                run.tags({name: number})
                assert sent and (name, str(number)) in [pair for _, what in sent for pair in what.items()]
        except Exception as error:
            failures.append(error)

    monkeypatch.setattr(deliverer, "send", record)
    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(sent) == 60
    assert [name for name, _ in sent] == sorted(name for name, _ in sent)


def test_a_command_that_opens_a_root_sends_nothing_out_of_order(tracker, run, tmp_path, monkeypatch):
    """Another process logs meanwhile: each entry is sent once, and none after a later one, whoever sends it."""
    log = tmp_path / "sent"
    own = send

    def record(client, run_id, kind, what, payload):
        (entry, *_) = sorted(path.name for path in (tracker.outboxes / run_id).glob("[0-9]*.json"))
        own(client, run_id, kind, what, payload)
        with log.open("a") as stream:
            stream.write(f"{entry} {what['number']}\n")

    monkeypatch.setattr(deliverer, "send", record)

    def logs():
        for number in range(60):
            run.tags({"number": number})

    child = forked(logs)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        tracker.deliverer.deliver_all(tracker.client)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [number for _, number in lines] == [str(number) for number in range(60)]
    assert [name for name, _ in lines] == sorted(name for name, _ in lines)
    assert tags_of(run)["number"] == "59" and not (tracker.outboxes / run.id).exists()


def test_a_process_that_stands_still_while_it_sends_keeps_no_other_waiting(run, said, tmp_path, monkeypatch):
    own = send

    def slow(*of):
        (tmp_path / "sending").touch()
        until(lambda: (tmp_path / "go").exists())
        own(*of)

    def logs():
        monkeypatch.setattr(deliverer, "send", slow)
        run.tags({"stem": "patchify"})

    child = forked(logs)
    until(lambda: (tmp_path / "sending").exists())
    os.kill(child, signal.SIGSTOP)
    monkeypatch.setattr(turns, "_PATIENCE_SECONDS", 0.2)
    began = time.monotonic()
    run.tags({"stem": "ics"})
    run.tags({"stem": "conv"})
    Tracker(run.tracker.outboxes.parent, "trials")
    assert time.monotonic() - began < 5 and waiting(run) == ["tags"] * 3
    assert len(said) == 1 and "another process is sending" in said[0]
    with pytest.raises(UserError, match=r"not in MLflow yet: 3 entries wait in undelivered/.*another process"):
        run.tracker.check_delivered()
    (tmp_path / "go").touch()
    os.kill(child, signal.SIGCONT)
    os.waitpid(child, 0)
    run.tracker.check_delivered()
    assert tags_of(run)["stem"] == "conv"


def test_a_process_killed_while_it_sends_is_followed_at_once(run, tmp_path, monkeypatch):
    def logs():
        monkeypatch.setattr(deliverer, "send", lambda *of: ((tmp_path / "sending").touch(), time.sleep(60)))
        run.tags({"stem": "patchify"})

    child = forked(logs)
    until(lambda: (tmp_path / "sending").exists())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    began = time.monotonic()
    run.tags({"stem": "ics"})
    assert time.monotonic() - began < 5
    assert tags_of(run)["stem"] == "ics" and waiting(run) == []


# Journals


def test_a_journal_that_is_being_written_is_left_to_its_process(run, tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    journal = Journal(folder / "metrics.jsonl")
    journal.append({"step": 0, "loss": 1.0})
    other = tmp_path / "followed"

    def trains():
        with Lease(folder / "lease.json"):
            run.follow(MetricsFeed(journal.path, run.id))
            other.touch()
            time.sleep(60)

    child = forked(trains)
    until(other.exists)
    Tracker(run.tracker.outboxes.parent, "trials")
    run.tags({"stem": "ics"})
    assert waiting(run) == ["journal"] and "loss" not in run.client.get_run(run.id).data.metrics
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    Tracker(run.tracker.outboxes.parent, "trials")
    assert waiting(run) == [] and run.client.get_run(run.id).data.metrics["loss"] == 1.0


def test_other_entries_do_not_wait_for_the_end_of_a_journal(run, tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    feed = MetricsFeed(journal.path, run.id)
    run.follow(feed)
    run.follow(feed)
    journal.append({"step": 0, "loss": 1.0})
    feed.read()
    run.tags({"stem": "ics"})
    assert tags_of(run)["stem"] == "ics" and waiting(run) == ["journal"]
    assert run.client.get_run(run.id).data.metrics == {"loss": 1.0} and not feed.pending
    journal.append({"step": 1, "loss": 0.5})  # not read: as when the last reading fails
    run.unfollow(feed)
    assert run.client.get_run(run.id).data.metrics == {"loss": 0.5} and waiting(run) == []


def test_rows_that_mlflow_refuses_are_told_once_and_keep_nothing_waiting(run, said, tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    feed = MetricsFeed(journal.path, run.id)
    run.follow(feed)
    journal.append({"step": 0, "a metric: of no name!": 1.0})
    feed.read()
    run.tags({"stem": "ics"})
    run.tags({"stem": "conv"})
    assert tags_of(run)["stem"] == "conv" and len(said) == 1 and "for now" in said[0]
    run.unfollow(feed)
    assert waiting(run) == [] and len(said) == 2 and "is dropped" in said[1]


# Entries that cannot be sent


def test_what_mlflow_refuses_is_the_caller_s_and_is_not_kept(run):
    run.params({"epochs": 3})
    with pytest.raises(MlflowException, match="epochs"):
        run.params({"epochs": 4})
    assert waiting(run) == []
    run.tags({"stem": "ics"})


def test_a_fault_of_our_own_is_not_a_refusal_and_nothing_is_lost(run, said, caplog, monkeypatch):
    own = send

    def faulty(client, run_id, kind, what, payload):
        if kind == "params":
            raise TypeError("a fault")
        own(client, run_id, kind, what, payload)

    monkeypatch.setattr(deliverer, "send", faulty)
    with pytest.raises(TypeError, match="a fault"):
        run.params({"epochs": 3})
    Outbox(run.tracker.outboxes / run.id).put({"uri": run.tracker.uri, "kind": "params", "what": {"lr": "1"}})
    run.tags({"stem": "ics"})
    assert tags_of(run)["stem"] == "ics" and said == []
    aside = sorted((run.tracker.outboxes / run.id).iterdir())
    assert len(aside) == 2 and all(".json.damaged-" in path.name for path in aside)
    assert "it cannot be sent: TypeError: a fault" in caplog.text and "MLflow refuses" not in caplog.text


def test_a_full_disk_of_artifacts_loses_none(run, monkeypatch):
    def full(*of):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", full)
        with pytest.raises(OSError, match="No space left"):
            run.text("kept", "a.txt")
        assert waiting(run) == ["artifact"]
    run.tags({"stem": "ics"})
    assert [file.path for file in run.client.list_artifacts(run.id)] == ["a.txt"]


def test_the_name_of_an_entry_is_forced_to_disk_only_if_it_waits(tracker, run, monkeypatch):
    synced = []
    monkeypatch.setattr(deliverer, "sync_folder", synced.append)
    run.tags({"a": "b"})
    assert not synced
    monkeypatch.setattr(tracker.outage, "lasts", lambda: True)
    run.tags({"a": "c"})
    box = tracker.outboxes / run.id
    assert synced == [box, tracker.outboxes, tracker.outboxes.parent]


def test_an_entry_for_another_store_keeps_none_for_this_one(run):
    Outbox(run.tracker.outboxes / run.id).put({"uri": "http://elsewhere", "kind": "tags", "what": {"a": "b"}})
    run.tags({"stem": "ics"})
    assert tags_of(run)["stem"] == "ics" and waiting(run) == ["tags"]
    run.tracker.check_delivered()


def test_a_run_whose_end_waits_is_running_when_it_is_resumed(tracker, run):
    box = Outbox(tracker.outboxes / run.id)
    box.put({"uri": tracker.uri, "kind": "tags", "what": {"error": "no"}})
    box.put({"uri": tracker.uri, "kind": "end", "what": {"status": "FAILED", "time": 1.0}})
    resumed = tracker.resume(run.id)
    resumed.tags({"stem": "ics"})
    assert tracker.status(run.id) == "RUNNING" and "error" not in tags_of(run)


def test_a_run_that_was_deleted_is_not_resumed(tracker, run):
    tracker.client.delete_run(run.id)
    assert tracker.resume(run.id) is None and waiting(run) == []


# What must not stop the rest


def test_a_journal_whose_entry_another_process_has_dropped_is_sent_to_its_end(run, tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl", 1)
    feed = MetricsFeed(journal.path, run.id)
    run.follow(feed)
    for step in range(3):
        for sent in Outbox(run.tracker.outboxes / run.id).entries():
            sent.drop()
        journal.append({"step": step, "loss": 1.0})
        feed.read()
        if step == 1:
            run.deliver()
    run.unfollow(feed)
    assert [point.step for point in run.client.get_metric_history(run.id, "loss")] == [0, 1, 2]
    assert waiting(run) == []


@pytest.fixture
def failing(monkeypatch, tracker):
    """Kinds of entries at which a server that answers everything else fails."""
    kinds: set[str] = set()
    real = deliverer.send

    def send_or_fail(client, run_id, kind, *what):
        if kind in kinds:
            raise MlflowException("internal error", error_code=1)
        real(client, run_id, kind, *what)

    monkeypatch.setattr(deliverer, "send", send_or_fail)
    monkeypatch.setattr(tracker.outage, "uri", "http://server")
    return kinds


def test_a_file_at_which_a_server_fails_stops_neither_its_run_nor_others(tracker, run, said, failing, monkeypatch):
    failing.add("artifact")
    run.text("drawn", "a/b.txt")
    run.tags({"a": "b"})
    assert tags_of(run)["a"] == "b" and waiting(run) == ["artifact"]
    assert len(said) == 1 and "cannot be sent to MLflow for now" in said[0] and "delete it" in said[0]
    assert tracker.outage.why == ""
    with pytest.raises(UserError, match="1 entry waits"):
        tracker.check_delivered()
    monkeypatch.setattr(deliverer, "_STUCK_SECONDS", 0.0)
    tracker.deliverer._stuck_until.clear()
    failing.clear()
    tracker.check_delivered()
    assert waiting(run) == [] and [file.path for file in run.client.list_artifacts(run.id, "a")] == ["a/b.txt"]


def test_an_entry_with_an_order_stops_its_run_alone(tracker, run, said, failing):
    other = tracker.run("another")
    failing.add("params")
    run.params({"epochs": 3})
    run.tags({"a": "b"})
    other.tags({"a": "c"})
    assert waiting(run) == ["params", "tags"] and "a" not in tags_of(run) and tags_of(other)["a"] == "c"
    assert len(said) == 1


def test_a_file_that_its_storage_does_not_give_does_not_stop_later_entries(run, said, monkeypatch, tmp_path):
    (tmp_path / "a.html").write_text("a")
    Outbox(run.tracker.outboxes / run.id).put(
        {"uri": run.tracker.uri, "kind": "file", "what": {"path": str(tmp_path / "a.html"), "folder": None}}
    )
    real = deliverer.send

    def refuse(client, run_id, kind, *what):
        if kind == "file":
            raise OSError(errno.EIO, "Input/output error", str(tmp_path / "a.html"))
        real(client, run_id, kind, *what)

    monkeypatch.setattr(deliverer, "send", refuse)
    run.tags({"a": "b"})
    assert tags_of(run)["a"] == "b" and waiting(run) == ["file"] and len(said) == 1
    with pytest.raises(OSError, match="Input/output"):
        run.file(tmp_path / "a.html")  # its own is the caller's to hear of


def test_a_lease_that_this_process_could_not_remove_holds_nothing_up(run):
    box = run.tracker.outboxes / run.id
    box.mkdir(parents=True)
    Lease(box / "lease.json").take()
    began = time.monotonic()
    run.tags({"a": "b"})
    assert tags_of(run)["a"] == "b" and not box.exists()
    assert time.monotonic() - began < turns._CONFIRM_SECONDS


@pytest.mark.parametrize("path", ["", "/", "metrics.jsonl", "/a\0/metrics.jsonl", "/etc/passwd"])
def test_an_entry_cannot_name_just_any_file_as_a_journal(path):
    assert entry({"uri": "sqlite:///x", "kind": "journal", "what": path}) is not None


def test_a_journal_below_what_is_no_folder_is_nobody_s(tmp_path):
    (tmp_path / "file").write_text("")
    assert not turns.is_held(tmp_path / "file" / "lease.json")


@pytest.mark.parametrize("error", [UserError("the real reason"), KeyboardInterrupt()])
def test_a_full_disk_does_not_hide_what_ended_a_run(run, said, monkeypatch, error):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device", "x.json")

    monkeypatch.setattr(Outbox, "put", full)
    with pytest.raises(type(error)), run:
        raise error
    assert len(said) == 1 and "No space left" in said[0]
    with pytest.raises(OSError, match="No space left"), run:
        pass
