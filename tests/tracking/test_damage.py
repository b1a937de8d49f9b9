"""MLflow's database is damaged while a run logs, and mended; and before a command opens it."""

import contextlib
import os
import re
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from rayreid.errors import UserError
from rayreid.storage.metrics_log import Journal, MetricsFeed
from rayreid.tracking import outage
from rayreid.tracking.damage import damage_of, examined
from rayreid.tracking.database import SQLITE
from rayreid.tracking.history import History
from rayreid.tracking.tracker import Tracker

PAGE = 4096


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // PAGE * PAGE)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def zeroed(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(PAGE)
        stream.write(bytes(path.stat().st_size - PAGE))


def overwritten(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"<html>not found</html>\n" * 50)


def dropped(table: str):
    def drop(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"DROP TABLE {table}")

    return drop


DAMAGES = {
    "truncated": truncated,
    "emptied": emptied,
    "zeroed": zeroed,
    "overwritten": overwritten,
    "no runs": dropped("runs"),
    "no tags": dropped("tags"),
    "no metrics": dropped("metrics"),
}


@pytest.fixture
def root(tmp_path, new_database) -> Path:
    new_database(tmp_path / "root")
    yield tmp_path / "root"
    SqlAlchemyStore._engine_map.pop(f"{SQLITE}{tmp_path / 'root' / 'mlflow.db'}", None)  # as in a command's own process


@pytest.fixture
def tracker(root, said, monkeypatch) -> Tracker:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(outage, "_SILENT_SECONDS", 0.0)
    return Tracker(root, "trials", said.append)


@pytest.mark.parametrize("put_back", [shutil.copy, os.replace], ids=["copied", "moved"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_database_damaged_in_the_middle_of_a_run_is_named_once_and_nothing_is_lost(
    tracker, root, said, tmp_path, damage, put_back, caplog, capfd
):
    database = root / "mlflow.db"
    with tracker.run("a run") as run:
        journal = Journal(tmp_path / "metrics.jsonl")
        feed = MetricsFeed(journal.path, run.id)
        run.follow(feed)
        run.tags({"stem": "patchify"})
        shutil.copy(database, tmp_path / "good.db")
        damage(database)
        caplog.clear()
        began = time.monotonic()
        run.tags({"stem": "ics"})
        for step in range(3):
            journal.append({"step": step, "loss": 1.0})
            feed.read()
            run.deliver()
            run.tags({"stem": "ics", "step": step})
        run.unfollow(feed)
        with pytest.raises(UserError) as caught:
            tracker.run("another")
        assert time.monotonic() - began < 20
        assert str(database) in str(caught.value) and "run the same command again" in str(caught.value)
    with pytest.raises(UserError) as caught:
        tracker.check_delivered()
    assert re.search(r"not in MLflow yet: \d entries wait in undelivered/", str(caught.value))
    for line in (*said, str(caught.value)):
        assert str(database) in line and "is damaged (" in line and "restore it from a copy" in line
        assert "\n" not in line and len(line) < 600
    assert len(said) == 1 and "runs go on" in said[0]
    assert "Traceback" not in capfd.readouterr().err and not [one for one in caplog.records if one.exc_info]

    put_back(tmp_path / "good.db", database)
    tracker.check_delivered()
    assert said[1:] == [f"MLflow at {tracker.uri} answers again"]
    found = MlflowClient(tracker.uri).get_run(run.id)
    assert (found.data.tags["stem"], found.data.tags["step"], found.info.status) == ("ics", "2", "FINISHED")
    assert [one.step for one in run.client.get_metric_history(run.id, "loss")] == [0, 1, 2]
    assert not tracker.outboxes.exists() or not list(tracker.outboxes.iterdir())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_database_is_not_opened(tracker, root, said, damage):
    run = tracker.run("a run")
    run.text("a: 1\n", "config.yaml")
    damage(root / "mlflow.db")
    SqlAlchemyStore._engine_map.pop(tracker.uri).dispose()
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        Tracker(root, "trials")
        assert damage is zeroed  # its first page is whole, and names all tables
        tracker.client.get_run(run.id)
    assert time.monotonic() - began < 10
    line = str(caught.value)
    assert f"{root}/mlflow.db: " in line and "is damaged (" in line and "restore it" in line and "\n" not in line
    if damage is not zeroed:
        with contextlib.suppress(UserError):
            History(tracker.uri)
        assert time.monotonic() - began < 15


def test_a_run_that_is_lost_with_its_page_is_not_taken_for_one_that_was_deleted(tracker, root, said):
    run = tracker.run("a run")
    whole = (root / "mlflow.db").read_bytes()
    error = MlflowException("Run with id=… not found", error_code=1)
    assert damage_of(error, tracker.uri) is None
    zeroed(root / "mlflow.db")
    assert "is damaged" in damage_of(
        RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}), run.tracker.uri
    )
    (root / "mlflow.db").write_bytes(whole)


def test_a_server_s_database_is_named_by_the_server():
    error = RestException({"error_code": "BAD_REQUEST", "message": "(sqlite3.DatabaseError) file is not a database\n…"})
    assert damage_of(error, "http://server:5000") == (
        "the database of MLflow at http://server:5000 is damaged (file is not a database)"
    )
    assert damage_of(ValueError("file is not a database"), "http://server:5000") is None


def test_a_database_that_mlflow_has_not_filled_yet_is_none_that_is_damaged(tmp_path):
    path = tmp_path / "mlflow.db"
    path.touch()
    assert examined(path) is None
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE experiments (name TEXT)")
    assert examined(path, whole=True) is None


def test_a_database_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    assert examined(tmp_path) is None
