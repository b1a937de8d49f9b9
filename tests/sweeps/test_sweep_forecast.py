import pytest

from rayreid.config.loading import load_experiment
from rayreid.pipeline.forecast.standings import State
from rayreid.sweeps.sweep_forecast import forecast_of

FRACTIONS = {"parameters": {"select.strategy": ["random", "cfs"], "select.fraction": [0.5, 1.0]}}


@pytest.fixture
def plan_of(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    return lambda gpus=0, cpus=2, **changes: forecast_of(load_experiment(tiny(**changes)), gpus, cpus)


def test_one_experiment_is_one_row(plan_of):
    found = plan_of()
    assert found.kind == "experiment" and found.labels == ("tiny",) and found.places == 1
    assert not any(step.shared for step in found.steps)


def test_seeds_are_rows(plan_of):
    assert plan_of(seeds=[0, 1]).labels == ("tiny · seed 0", "tiny · seed 1")


def test_trials_share_what_is_equal(plan_of, tmp_path):
    found = plan_of(sweep=FRACTIONS)
    assert len(found.labels) == found.trials == 4 and found.kind == "sweep"
    whole = [step for step in found.steps if step.role == "metrics"]
    assert sorted(len(step.users) for step in whole) == [1, 1, 2], "a fraction of 1 has no strategy"
    assert found.count(State.MADE) == len(found.steps) and not (tmp_path / "outputs").exists()


def test_as_many_trials_run_at_a_time_as_the_machine_holds(plan_of):
    one = {"workers": 1, "cpus_per_worker": 1}
    assert plan_of(gpus=4, cpus=64, sweep=FRACTIONS, resources=one).places == 4
    assert plan_of(gpus=4, cpus=64, sweep=FRACTIONS).places == 1
    assert plan_of(gpus=4, cpus=64, sweep=FRACTIONS | {"max_concurrent": 3}, resources=one).places == 3


def test_a_search_is_estimated_by_the_ends_of_its_ranges(plan_of):
    search = {"search": "optuna", "trials": 30, "parameters": {"finetune.lr": {"loguniform": [1e-4, 1e-2]}}}
    few, many = (plan_of(sweep=search | {"trials": trials}) for trials in (10, 30))
    assert len(few.labels) == 3 and many.trials == 30 and "each of the 30 trials" in many.notes[-1]
    own = sum(step.estimate.seconds.likely for step in many.steps if len(step.users) == 1)
    assert many.seconds.likely - few.seconds.likely == pytest.approx(own * 20 / 3)


def test_a_rule_that_stops_trials_is_named(plan_of):
    assert "stop_below_median" in plan_of(sweep=FRACTIONS | {"stop_below_median": 1}).notes[-1]
