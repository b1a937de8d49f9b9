"""Which trials Tune is given, and what becomes of the others; without Ray and without a training."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from rayreid.config import Experiment
from rayreid.pipeline.graph import plan
from rayreid.storage.artifacts import Artifact
from rayreid.sweeps import known_trials
from rayreid.sweeps.sweep_outcome import SweepOutcome
from rayreid.sweeps.trials import trials
from tiny_experiment import TINY


def complete(artifact: Artifact) -> None:
    artifact.path.mkdir(parents=True)
    artifact.finish({})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a sweep over these parameters, of which Tune completes every trial that is not among `broken`."""
    recorded: dict[str, str] = {}
    asked: list[str] = []

    @contextlib.contextmanager
    def experiment_run(session, one, label, parent) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(
            fail=lambda reason: recorded.update({label: f"failed: {reason}"}),
            give_up=lambda reason: recorded.update({label: f"stopped: {reason}"}),
        )

    monkeypatch.setattr(known_trials, "experiment_run", experiment_run)
    monkeypatch.setattr(known_trials, "is_recorded", lambda session, one, parent: False)
    monkeypatch.setattr(known_trials, "slots", lambda experiment: 1)
    monkeypatch.setattr(known_trials, "run_row", lambda label, *rest: recorded.update({label: "row"}))

    def run(parameters, broken=(), stopped=None, shared_failures=None, finished=(), refused=None) -> SimpleNamespace:
        experiment = Experiment.model_validate({**TINY, "sweep": {"parameters": parameters}})
        known = trials(experiment)
        plans = {label: plan(one, tmp_path) for label, one in known.items()}

        def run_trials(experiment, todo, searcher, session, parent, stopping) -> dict[str, str]:
            asked.extend(todo)
            for label in todo:
                if label not in (*broken, *(stopped or {})):
                    complete(plans[label]["metrics"])
            return {label: "broken" for label in broken if label in todo}

        monkeypatch.setattr(known_trials, "run_trials", run_trials)
        monkeypatch.setattr(known_trials, "stops", lambda session, experiment: stopped or {})
        failed = {plans[label][role].id: reason for (label, role), reason in (shared_failures or {}).items()}
        monkeypatch.setattr(known_trials, "produce_all", lambda *rest: failed)
        monkeypatch.setattr(known_trials, "refused_trials", lambda *rest: refused or {})
        for label in finished:
            complete(plans[label]["metrics"])
        outcome = known_trials.run_known(experiment, known, plans, SimpleNamespace(), SimpleNamespace())
        return SimpleNamespace(outcome=outcome, asked=asked, recorded=recorded)

    return run


def test_tune_runs_what_has_no_result_and_what_has_one_is_recorded(run):
    made = run({"finetune.lr": [0.1, 0.2, 0.3]}, finished=["finetune.lr=0.2"])
    assert made.asked == ["finetune.lr=0.1", "finetune.lr=0.3"]
    assert made.recorded == {"finetune.lr=0.2": "row"} and made.outcome.failures == {}
    assert isinstance(made.outcome, SweepOutcome) and len(made.outcome.trials) == 3


def test_trials_of_one_result_run_once_and_fail_together(run):
    parameters = {"select.strategy": ["cfs", "random"], "select.fraction": [1.0]}
    first, second = (f"select.strategy={name}, select.fraction=1.0" for name in ("cfs", "random"))
    assert (made := run(parameters, broken=[first])).asked == [first]
    assert made.recorded == {second: "failed: broken"}
    assert made.outcome.failures == {first: "broken", second: "broken"}


def test_a_trial_whose_shared_stage_failed_is_not_run(run):
    first, second = "finetune.lr=0.1", "finetune.lr=0.2"
    made = run({"finetune.lr": [0.1, 0.2]}, shared_failures={(first, "model"): "no room"})
    assert made.asked == [second]
    assert made.recorded == {first: "failed: no room"} and made.outcome.failures == {first: "no room"}


def test_a_trial_whose_datasets_are_refused_is_not_run_and_does_not_end_the_sweep(run):
    first, second = "finetune.lr=0.1", "finetune.lr=0.2"
    made = run({"finetune.lr": [0.1, 0.2]}, refused={first: "pool: holds test images"})
    assert made.asked == [second]
    assert made.recorded == {first: "failed: pool: holds test images"}
    assert made.outcome.failures == {first: "pool: holds test images"}


def test_a_trial_that_was_ended_early_is_not_begun_again_nor_what_is_the_same(run):
    parameters = {"select.strategy": ["cfs", "random"], "select.fraction": [1.0]}
    first, second = (f"select.strategy={name}, select.fraction=1.0" for name in ("cfs", "random"))
    made = run(parameters, stopped={first: "below the median"})
    assert made.asked == []
    assert made.recorded == {second: "stopped: below the median"} and made.outcome.failures == {}
