"""Ctrl-C while something is logged: the runs end as KILLED, wherever it hits."""

import contextlib
import signal
import time

import pytest
from sqlalchemy import event

from rayreid.tracking.tracker import Tracker


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _database(tmp_path, new_database):
    new_database(tmp_path)


@contextlib.contextmanager
def pressed_at(uri: str, moment: str, statement: int):
    """Press Ctrl-C before or after a statement that MLflow sends to its database."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine, count = SqlAlchemyStore._engine_map[uri], 0

    def press(*_: object) -> None:
        nonlocal count
        count += 1
        if count == statement:
            signal.raise_signal(signal.SIGINT)

    event.listen(engine, moment, press)
    try:
        yield
    finally:
        event.remove(engine, moment, press)


@pytest.mark.parametrize("moment", ["before_cursor_execute", "after_cursor_execute", "commit"])
@pytest.mark.parametrize("statement", [1, 2, 3, 4, 6])
def test_ctrl_c_within_a_statement_does_not_lock_the_database(tmp_path, said, moment, statement):
    tracker = Tracker(tmp_path, "interrupted", said.append)
    parent = tracker.run("experiment")
    with pytest.raises(KeyboardInterrupt), parent:
        stage = parent.child("stage")
        with stage, pressed_at(tracker.uri, moment, statement):
            for step in range(20):
                stage.params({f"p{step}": step})
                stage.metrics({"loss": 0.1}, step)
    assert [tracker.status(run.id) for run in (parent, stage)] == ["KILLED", "KILLED"]
    assert said == []


def test_ctrl_c_at_any_moment_leaves_no_turn_taken(tmp_path, said):
    """The moments are those of a clock, so each round hits somewhere else."""
    tracker = Tracker(tmp_path, "interrupted", said.append)
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        for round_ in range(40):
            run = tracker.run("stage")
            with contextlib.suppress(KeyboardInterrupt), run:
                signal.setitimer(signal.ITIMER_REAL, 1e-3 * (1 + round_))
                until = time.monotonic() + 5.0
                while time.monotonic() < until:
                    run.metrics({"loss": 0.1}, round_)
            assert (tracker.status(run.id), said) == ("KILLED", [])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not list(tmp_path.glob("undelivered/*"))


def test_ctrl_c_does_not_wait_for_a_backlog(tmp_path, said, monkeypatch):
    tracker = Tracker(tmp_path, "interrupted", said.append)
    run, sent = tracker.run("stage"), []
    monkeypatch.setattr(tracker.outage, "lasts", lambda: True)
    for step in range(20):
        run.metrics({"loss": 0.1}, step)
    monkeypatch.undo()

    def send(*entry: object) -> None:
        sent.append(entry)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("rayreid.tracking.deliverer.send", send)
    with pytest.raises(KeyboardInterrupt):
        run.deliver()
    assert len(sent) == 1
    monkeypatch.undo()
    run.finish()
    assert tracker.status(run.id) == "FINISHED" and not list(tmp_path.glob("undelivered/*"))
