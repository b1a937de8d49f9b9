"""A trial in a process of its own: what it waits for, what it reports, what it leaves to Tune."""

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from ray.exceptions import RayActorError

from rayreid.config.loading import load_experiment
from rayreid.errors import StoppedEarly, UserError
from rayreid.pipeline.experiment_runner import open_session
from rayreid.sweeps import ray_tune
from rayreid.tracking import outage
from rayreid.tracking.orphans import end_below, ending
from rayreid.tracking.outbox import Outbox


@pytest.fixture
def reported(monkeypatch):
    """What trials report to Tune."""
    told = []
    monkeypatch.setattr("ray.tune.report", told.append)
    return told


@pytest.fixture
def experiment(tiny, root):
    return load_experiment(tiny(pretrain="none"))


@pytest.fixture
def owner(experiment):
    return open_session(experiment).tracker.run("sweep")


def run_one(monkeypatch, experiment, owner, run_row):
    monkeypatch.setattr(ray_tune, "run_row", run_row)
    ray_tune._trial({"label": "one"}, {"one": experiment}, experiment, owner.id)


def raises(error):
    def run_row(*of):
        raise error

    return run_row


def reaches(*of):
    return type("Row", (), {"metrics": lambda self: {"mAP": 0.5}})()


def test_it_waits_for_a_tracking_server_that_is_away_and_a_command_does_not(experiment, owner, reported, monkeypatch):
    asked = []
    found = owner.client.get_experiment_by_name("tiny")

    def away(self, name):
        asked.append(name)
        if len(asked) % 3:
            raise MlflowException("away", error_code=TEMPORARILY_UNAVAILABLE)
        return found

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", away)
    monkeypatch.setattr(outage, "_POLL_SECONDS", 0.01)
    with pytest.raises(UserError, match="does not answer"):
        open_session(experiment)
    asked.clear()
    run_one(monkeypatch, experiment, owner, reaches)
    assert len(asked) == 3 and reported == [{"mAP": 0.5}]


def test_an_error_is_reported_with_its_traceback_on_the_disk_until_the_next_attempt(
    experiment, owner, root, reported, monkeypatch
):
    run_one(monkeypatch, experiment, owner, raises(UserError("5.jpg is truncated")))
    assert reported == [{"failed": "5.jpg is truncated"}]
    (traceback,) = root.glob("experiments/tiny-*/error.txt")
    assert "in run_row" in traceback.read_text()
    run_one(monkeypatch, experiment, owner, reaches)
    assert reported[1:] == [{"mAP": 0.5}] and not traceback.exists()


def test_a_suggestion_that_is_no_experiment_fails_alone_with_its_reason_in_mlflow(experiment, owner, reported):
    changes = '{"finetune.epochs": 3, "finetune.warmup_epochs": 6}'
    ray_tune._trial({"label": "together", "changes": changes}, {}, experiment, owner.id)
    (told,) = reported
    assert "warmup_epochs" in told["failed"]
    (run,) = owner.client.search_runs(
        [owner.tracker.experiment_id], f"tags.row = 'together' and tags.`mlflow.parentRunId` = '{owner.id}'"
    )
    assert run.info.status == "FAILED" and "warmup_epochs" in run.data.tags["error"]


def test_what_was_lost_with_a_node_is_left_to_tune(experiment, owner, reported, monkeypatch):
    with pytest.raises(RayActorError):
        run_one(monkeypatch, experiment, owner, raises(RayActorError()))
    assert reported == []


def test_one_that_is_ended_early_has_not_failed(experiment, owner, root, reported, monkeypatch):
    run_one(monkeypatch, experiment, owner, raises(StoppedEarly("below the median")))
    assert reported == [{"stopped": 1.0}] and not list(root.glob("experiments/*/error.txt"))
    assert ray_tune.stops(open_session(experiment), experiment) == {"one": "below the median"}


def status_of(run):
    return run.client.get_run(run.id).info.status


def test_runs_that_nobody_can_end_any_more_are_ended_with_all_below_them(owner):
    other = owner.tracker.run("another sweep")
    trial, stranger = owner.child("trial"), other.child("trial")
    stage, done = trial.child("finetune"), owner.child("done")
    done.finish()
    end_below(owner, "KILLED")
    assert {name: status_of(run) for name, run in (("trial", trial), ("stage", stage), ("done", done))} == {
        "trial": "KILLED",
        "stage": "KILLED",
        "done": "FINISHED",
    }
    assert status_of(owner) == status_of(stranger) == "RUNNING"


def test_a_run_whose_end_is_owed_gets_that_one(owner):
    ended = owner.child("trial")
    box = Outbox(owner.tracker.outboxes / ended.id)
    box.put({"uri": owner.tracker.uri, "kind": "end", "what": {"status": "FINISHED", "time": 1.0}})
    end_below(owner, "FAILED")
    assert status_of(ended) == "FINISHED"


def test_a_trial_that_is_lost_for_good_has_its_reason_in_mlflow(experiment, owner, monkeypatch, tiny):
    class Tuner:
        def __init__(self, *of, **rest):
            pass

        def fit(self):
            return [type("Result", (), {"config": {"label": "one"}, "metrics": {}, "error": "the actor died"})()]

    monkeypatch.setattr("ray.tune.Tuner", Tuner)
    monkeypatch.setattr(ray_tune, "slots", lambda experiment: 1)
    whole = load_experiment(tiny(pretrain="none", sweep={"parameters": {"seed": [0]}}))
    session = open_session(experiment)
    assert ray_tune.run_trials(whole, {"one": experiment}, None, session, owner) == {"one": "the actor died"}
    (run,) = [
        run
        for run in owner.client.search_runs([owner.tracker.experiment_id], "tags.error = 'the actor died'")
        if run.data.tags["mlflow.parentRunId"] == owner.id
    ]
    assert run.info.status == "FAILED"


def test_a_sweep_that_is_stopped_kills_and_one_that_ends_fails_what_it_left(owner):
    left = owner.child("trial")
    with pytest.raises(SystemExit), ending(owner):
        raise SystemExit
    assert status_of(left) == "KILLED"
    left = owner.child("trial")
    with ending(owner):
        pass
    assert status_of(left) == "FAILED"


@pytest.mark.parametrize(
    ("store", "kept"), [("sqlite:////shared/outputs/mlflow.db", {"node:10.0.0.1": 0.001}), ("http://mlflow:5000", {})]
)
def test_trials_stay_on_the_driver_s_machine_where_they_share_a_database_file(monkeypatch, store, kept):
    monkeypatch.setattr(ray_tune, "get_node_ip_address", lambda: "10.0.0.1")
    assert ray_tune._on_this_machine(store) == kept
