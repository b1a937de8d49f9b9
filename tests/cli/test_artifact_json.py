"""`rayreid artifacts list` and `show` as JSON."""

import json

import pytest

from rayreid.cli import main
from rayreid.storage.artifacts import Artifact


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path))
    one = Artifact(tmp_path, "ingest", 3, {"source": {"root": "s3://AKuser:hunter2pw@store/images"}})
    with one.writing():
        one.finish({})
    return one


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_form_of_an_artifact_shows_credentials(store, form, capsys):
    with pytest.raises(SystemExit):
        main(["artifacts", "show", store.id, *form])
    out = capsys.readouterr().out
    assert "hunter2" not in out and "s3://***@store/images" in out


def test_the_list_is_json(store, capsys):
    with pytest.raises(SystemExit):
        main(["artifacts", "list", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["artifact"] == str(store)
