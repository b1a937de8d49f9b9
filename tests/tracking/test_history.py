import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from rayreid.errors import UserError
from rayreid.tracking.history import History
from rayreid.tracking.tracker import Tracker


@pytest.fixture
def tracker(tmp_path, new_database, monkeypatch):
    new_database(tmp_path / "root")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tracker(tmp_path / "root", "read")


@pytest.fixture
def registered(tracker):
    """A history with one registered model, and the id of the run that it comes from."""
    run = tracker.run("a run")
    run.tags({"artifact.model": "finetune/0123456789ab"})
    tracker.client.create_registered_model("mine")
    tracker.client.create_model_version("mine", f"runs:/{run.id}/model", run.id)
    return History(tracker.uri), run.id


def test_a_registered_model_has_the_tags_of_its_run(registered):
    assert registered[0].registered()["models:/mine/1"]["artifact.model"] == "finetune/0123456789ab"


def test_a_run_that_does_not_exist_is_none(registered):
    history, run = registered
    assert history.get(run).id == run
    assert history.get("0" * 32) is history.get("") is history.get("no/run") is None


@pytest.mark.parametrize("code", [codes.TEMPORARILY_UNAVAILABLE, codes.INTERNAL_ERROR, codes.PERMISSION_DENIED])
def test_a_store_that_does_not_answer_is_no_run_that_was_deleted(registered, monkeypatch, code):
    history, run = registered

    def refused(run_id):
        raise MlflowException("the server is away", error_code=code)

    monkeypatch.setattr(history.client, "get_run", refused)
    for asked in (history.registered, lambda: history.get(run)):
        with pytest.raises(UserError, match=r"cannot be read .*the server is away"):
            asked()
