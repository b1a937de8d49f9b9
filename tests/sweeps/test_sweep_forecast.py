import json
import sys

import pytest

from rayreid.config.loading import load_experiment
from rayreid.paths import output_root
from rayreid.pipeline.experiment_folder import path_of
from rayreid.pipeline.forecast.standings import State
from rayreid.pipeline.graph import plan
from rayreid.storage.artifacts import lineage
from rayreid.sweeps.stop_notes import note_paths, write_note
from rayreid.sweeps.sweep_forecast import forecast_of
from rayreid.sweeps.trials import trial, trials

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


def finish(experiment):
    for one in lineage(plan(experiment, output_root())).values():
        if not one.complete:
            with one.writing():
                one.finish({})


def test_trials_that_were_stopped_are_not_planned_again(plan_of, tiny, tmp_path):
    sweep = {"parameters": {"pretrain.lr": [0.1, 0.2, 0.3]}, "stop_below_median": 1}
    before, whole = plan_of(sweep=sweep), load_experiment(tiny(sweep=sweep))
    first, *others = trials(whole).items()
    write_note(output_root(), whole, first[1], first[0], "below the median")
    found = plan_of(sweep=sweep)
    assert {step.users for step in before.steps} - {step.users for step in found.steps} == {(first[0],)}
    assert any("1 of 3 trials were stopped early" in note for note in found.notes)
    for _, one in others:
        finish(one)
    assert not plan_of(sweep=sweep).to_make


def test_a_damaged_note_of_a_stop_is_left_where_it_is(plan_of, tiny):
    whole = load_experiment(tiny(sweep=FRACTIONS))
    label, one = next(iter(trials(whole).items()))
    write_note(output_root(), whole, one, label, "below the median")
    (note,) = note_paths(output_root(), whole)
    note.write_text("{")
    assert not any("stopped early" in note for note in plan_of(sweep=FRACTIONS).notes)
    assert list(note.parent.iterdir()) == [note]


def test_a_plan_creates_no_folder_for_notes(plan_of, tiny):
    plan_of(sweep=FRACTIONS)
    assert not path_of(output_root(), load_experiment(tiny(sweep=FRACTIONS))).exists()


SEARCH = {"search": "optuna", "trials": 4, "parameters": {"finetune.lr": {"uniform": [0.001, 0.01]}}}


@pytest.fixture
def searched(tiny):
    """`searched(count)` finishes so many trials of a search, with their artifacts; returns the folder of its study."""
    pytest.importorskip("optuna")
    from rayreid.sweeps.optuna_search import OptunaSearcher

    whole = load_experiment(tiny(sweep=SEARCH))
    folder = path_of(output_root(), whole)

    def searched(count):
        folder.mkdir(parents=True, exist_ok=True)
        searcher = OptunaSearcher(whole.sweep, folder)
        for number in range(count):
            changes = json.loads(searcher.suggest(str(number))["changes"])
            finish(trial(whole, changes))
            searcher.on_trial_complete(str(number), {"mAP": 0.5})
        return folder

    return searched


def test_what_is_left_of_a_search_is_planned(plan_of, searched):
    study = searched(1) / "search.log"
    before = study.read_bytes(), sorted(study.parent.iterdir())
    found = plan_of(sweep=SEARCH)
    assert found.trials == 3 and any("1 of 4 trials" in note for note in found.notes)
    assert "each of the 3 trials" in found.notes[-1]
    assert (study.read_bytes(), sorted(study.parent.iterdir())) == before


def test_nothing_is_left_of_a_finished_search(plan_of, searched):
    searched(4)
    found = plan_of(sweep=SEARCH)
    assert not found.to_make and found.trials == len(found.labels) == 4
    assert not any("trials" in note for note in found.notes)


@pytest.mark.parametrize("content", ["", "no\njournal\n"])
def test_a_study_without_trials_and_a_damaged_one_are_planned_from_the_beginning(plan_of, searched, content):
    study = searched(0) / "search.log"
    study.write_text(content)
    found = plan_of(sweep=SEARCH)
    assert found.trials == 4 and study.read_text() == content
    assert any("begins again" in note for note in found.notes) == bool(content)


def test_a_search_without_optuna_is_planned_and_would_be_refused(plan_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    found = plan_of(sweep=SEARCH)
    assert found.trials == 4 and any("would refuse this" in note for note in found.notes)


def test_a_search_costs_what_as_many_random_draws_cost(plan_of):
    ranges = {"finetune.lr": {"uniform": [0.001, 0.01]}, "pretrain.lr": {"uniform": [0.1, 0.2]}}
    one = {"resources": {"workers": 1, "cpus_per_worker": 1}, "gpus": 8, "cpus": 64}
    drawn, searched = (
        plan_of(sweep={"search": kind, "trials": 24, "parameters": ranges}, **one) for kind in ("random", "optuna")
    )
    assert drawn.places == searched.places == 8
    for name in ("gpu_hours", "disk", "seconds"):
        assert getattr(searched, name).likely == pytest.approx(getattr(drawn, name).likely, rel=0.02)


def test_trials_of_a_search_share_what_depends_on_few_values(plan_of):
    keys = {"pretrain.lr": [0.1, 0.2], "finetune.lr": {"uniform": [0.001, 0.01]}}
    found = plan_of(sweep={"search": "optuna", "trials": 24, "parameters": keys})
    made = {step.role: 0.0 for step in found.steps}
    for step in found.steps:
        made[step.role] += found._times(step)
    assert made["weights"] == pytest.approx(2) and made["model"] == pytest.approx(24)
    assert made["pool"] == made["target"] == 1


def test_a_method_of_two_counts_for_half_of_the_trials(plan_of):
    keys = {"pretrain.method": ["none", "mocov3"], "finetune.lr": {"uniform": [0.001, 0.01]}}
    found = plan_of(sweep={"search": "optuna", "trials": 24, "parameters": keys})
    assert [found._times(step) for step in found.steps if step.role == "weights"] == [pytest.approx(12)]
    models = sum(found._times(step) for step in found.steps if step.role == "model")
    assert models == pytest.approx(24)
