"""What `artifact.json` says about the command, the host and the versions that made it."""

import io
import json
import socket

from rich.console import Console

from rayreid import __version__
from rayreid.console import Screen
from rayreid.execution.maker import maker_of, versions
from rayreid.execution.production import produce
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import RECORD, read_record
from recorded_run import RecordedRun


def test_the_command_the_host_and_the_versions_are_known():
    made = maker_of(RecordedRun())
    assert made["host"] == socket.gethostname()
    assert made["versions"] == versions() and made["versions"]["rayreid"] == __version__
    assert {"python", "torch", "ray", "mlflow"} <= made["versions"].keys()


def test_credentials_of_a_command_are_masked():
    assert maker_of(RecordedRun())["command"] == "rayreid run mine.yaml pool.root=s3://***@store"


def test_a_run_that_knows_no_command_leaves_it_out(monkeypatch):
    run = RecordedRun()
    monkeypatch.setattr(run, "source", lambda: {"mlflow.source.name": None})
    assert "command" not in maker_of(run)


def test_a_record_says_what_made_it_and_one_without_it_still_opens(tmp_path):
    artifact = Artifact(tmp_path, "stage", 1, {"answer": 42}, job=lambda work: {"images": 3})
    before = artifact.id
    produce(artifact, RecordedRun(), Screen(Console(file=io.StringIO())), {})
    assert read_record(artifact.path).made_by == maker_of(RecordedRun()) and artifact.id == before
    path = artifact.path / RECORD
    content = json.loads(path.read_text())
    assert content["recipe"] == artifact.identity
    del content["made_by"]
    path.write_text(json.dumps(content))
    assert artifact.complete and read_record(artifact.path).made_by == {}
