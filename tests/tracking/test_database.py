"""The database of the default store: opened in a folder of any name, and right after the folder was moved."""

import contextlib
import json
import shutil
import sqlite3
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from rayreid.errors import UserError
from rayreid.storage.metrics_log import Journal, MetricsFeed
from rayreid.tracking import database
from rayreid.tracking.database import check_moved, default_uri, file_of, fix_locations
from rayreid.tracking.tracker import Tracker


@pytest.fixture(autouse=True)
def default_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize("name", ["my outputs", "run#2", "50%20off", "a?b", "ü", "it's", "100%"])
def test_the_root_may_have_any_name(tmp_path, new_database, name):
    root = tmp_path / name
    new_database(root)
    uri = default_uri(root)
    assert file_of(uri) == root / "mlflow.db"
    tracker = Tracker(root, "trials")
    run = tracker.run("a run")
    run.text("written", "note.txt")
    run.finish()
    assert [path.name for path in root.rglob("note.txt")] == ["note.txt"]
    assert [file.path for file in MlflowClient(uri).list_artifacts(run.id)] == ["note.txt"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_no_uri_can_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sqlalchemy.engine.make_url", lambda uri: SimpleNamespace(database="another"))
    with pytest.raises(UserError, match="RAYREID_ROOT"):
        default_uri(tmp_path / "a?b")  # SQLAlchemy before 2.1 decodes no path


def test_a_store_that_is_no_database_has_no_file():
    assert file_of("http://server:5000") is None


@pytest.fixture
def outputs(tmp_path, new_database):
    """An output root with one run that has an artifact."""
    root = tmp_path / "old"
    new_database(root)
    with Tracker(root, "trials").run("a run") as run:
        run.text("written", "note.txt")
    return root


def artifacts_of(root) -> list[str]:
    client = MlflowClient(default_uri(root))
    [experiment] = [one for one in client.search_experiments() if one.name == "trials"]
    [run] = client.search_runs([experiment.experiment_id])
    return [file.path for file in client.list_artifacts(run.info.run_id)]


def test_outputs_that_were_moved_are_refused_until_their_places_are_mended(outputs, tmp_path):
    new = tmp_path / "new"
    outputs.rename(new)
    for experiment in ("trials", "another"):
        with pytest.raises(UserError, match=rf"{new}: .*{outputs}/mlartifacts.*doctor --fix-locations"):
            Tracker(new, experiment)
    assert not outputs.exists()
    assert fix_locations(new) == {outputs / "mlartifacts": 2}  # the experiment's and the run's
    assert artifacts_of(new) == ["note.txt"]
    with Tracker(new, "trials").run("another run") as run:
        run.text("written", "other.txt")
    assert not outputs.exists() and list(new.rglob("other.txt"))
    assert fix_locations(new) == {}


def test_a_copy_is_refused_where_it_would_write_to_the_original(outputs, tmp_path):
    copy = tmp_path / "a_copy"
    shutil.copytree(outputs, copy)
    check_moved(copy, "another")
    with pytest.raises(UserError, match="fix-locations"):
        check_moved(copy, "trials")
    fix_locations(copy)
    shutil.rmtree(outputs)
    assert artifacts_of(copy) == ["note.txt"]


def test_the_same_folder_under_another_name_is_not_a_move(outputs, tmp_path):
    (tmp_path / "link").symlink_to(outputs)
    check_moved(tmp_path / "link", "trials")


@pytest.mark.parametrize("place", ["old_2/mlartifacts-of-mine", "old/mlartifacts-of-mine", "OLD/mlartifacts/7"])
def test_a_folder_of_a_similar_name_keeps_its_places(outputs, tmp_path, place):
    """One root may be the beginning of another's name, or differ from it in case alone."""
    client = MlflowClient(default_uri(outputs))
    other = (tmp_path / place).as_uri()
    client.create_experiment("mine", artifact_location=other)
    new = tmp_path / "new"
    outputs.rename(new)
    fix_locations(new)
    assert MlflowClient(default_uri(new)).get_experiment_by_name("mine").artifact_location == other


def test_entries_that_wait_for_delivery_follow(outputs, tmp_path):
    tracker = Tracker(outputs, "trials")
    run = tracker.run("waiting")
    journal = Journal(outputs / "pretrain" / "metrics.jsonl")
    journal.path.parent.mkdir()
    journal.append({"step": 0, "loss": 1.0})
    run.follow(MetricsFeed(journal.path, run.id))
    new = tmp_path / "new"
    outputs.rename(new)
    fix_locations(new)
    [entry] = (new / "undelivered" / run.id).glob("*.json")
    assert str(outputs) not in json.dumps(json.loads(entry.read_text()))
    again = Tracker(new, "trials")
    assert again.client.get_metric_history(run.id, "loss")[0].value == 1.0


def test_an_error_of_the_database_is_told_in_one_line(outputs, caplog, capfd):
    told = []
    run = Tracker(outputs, "trials", told.append).run("a run")
    caplog.clear()
    with contextlib.closing(sqlite3.connect(outputs / "mlflow.db")) as connection, connection:
        connection.execute("DROP TABLE runs")
    run.metrics({"mAP": 1.0})
    assert len(told) == 1 and "no such table" in told[0] and "\n" not in told[0]
    assert caplog.records == [] and "Traceback" not in capfd.readouterr().err


def test_without_a_database_nothing_is_checked(tmp_path):
    check_moved(tmp_path, "trials")
    (tmp_path / "mlflow.db").touch()
    check_moved(tmp_path, "trials")
    assert fix_locations(tmp_path) == {} and database.LOCK not in {path.name for path in tmp_path.iterdir()}
