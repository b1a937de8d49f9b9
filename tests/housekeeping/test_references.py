import errno
import json
import os
from pathlib import Path

import pytest
import yaml

from rayreid.config.loading import dump, load_experiment, rows
from rayreid.housekeeping.references import look
from rayreid.pipeline.graph import plan
from rayreid.pipeline.needed_artifacts import needed, record_needed
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.sweeps.trials import trials
from tiny_experiment import TINY


@pytest.fixture
def recorded(outputs, tiny):
    """Writes the folder of an experiment as a run does, and returns the experiment."""

    def recorded(name="tiny-1", **changes):
        experiment = load_experiment(tiny(**changes))
        folder = outputs / "experiments" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(dump(experiment))
        (folder / "run.json").write_text(json.dumps({"run": "0123456789abcdef"}))
        return experiment

    return recorded


def test_an_experiment_uses_all_of_its_graph(outputs, recorded):
    experiment = recorded()
    known = look()[1]
    for identifier in lineage(plan(rows(experiment)["tiny"], outputs)):
        assert known.of(identifier) == ("experiments/tiny-1",)
    assert known.unresolved == ()


def test_a_sweep_uses_the_graphs_of_its_trials(outputs, recorded):
    experiment = recorded(sweep={"parameters": {"select.fraction": [0.25, 0.5]}})
    known = look()[1]
    assert all(
        graph["metrics"].id in known.others for graph in (plan(one, outputs) for one in trials(experiment).values())
    )


def test_an_artifact_uses_what_it_was_made_of(outputs):
    pool = Artifact(outputs, "ingest", 1, {})
    weights = Artifact(outputs, "pretrain", 1, {}, {"pool": pool})
    for one in (pool, weights):
        with one.writing():
            one.finish({})
    known = look()[1]
    assert known.of(pool.id) == (f"{weights} (pool)",) and known.of(weights.id) == ()


def test_the_report_of_an_experiment_uses_what_this_uses(outputs, recorded):
    graph = plan(rows(recorded())["tiny"], outputs)
    (outputs / "reports" / "tiny-01234567").mkdir(parents=True)
    assert look()[1].of(graph["metrics"].id) == ("experiments/tiny-1", "reports/tiny-01234567")


def test_a_matrix_uses_its_evaluations(outputs, recorded):
    recorded(
        matrix={"targets": [{**TINY["target"], "name": "again", "options": {**TINY["target"]["options"], "seed": 7}}]}
    )
    used = look()[1].others
    assert len(used) > len(lineage(plan(load_experiment(outputs / "experiments/tiny-1/config.yaml").alone, outputs)))


def test_an_experiment_that_cannot_be_read_is_told(outputs, recorded):
    recorded()
    path = outputs / "experiments" / "tiny-1" / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "gone": 1}))
    known = look()[1]
    assert len(known.unresolved) == 1 and "unknown key 'gone'" in known.unresolved[0]
    assert "\n" not in known.unresolved[0] and "delete the folder" in known.unresolved[0]


def test_an_unfinished_artifact_of_no_experiment_is_told(outputs, recorded):
    graph = plan(rows(recorded())["tiny"], outputs)
    graph["model"].path.mkdir(parents=True)
    assert look()[1].unresolved == ()
    Artifact(outputs, "pretrain", 1, {}).path.mkdir(parents=True)
    assert "is unfinished and belongs to no experiment" in look()[1].unresolved[0]


def test_registered_models_use_the_artifacts_of_their_run(outputs, recorded, monkeypatch, new_database):
    new_database(outputs)
    tags = {"artifact.model": "finetune/0123456789ab", "stage": "x"}
    monkeypatch.setattr("rayreid.housekeeping.references.History.registered", lambda self: {"models:/mine/1": tags})
    assert look()[1].of("0123456789ab") == ("models:/mine/1",)


@pytest.fixture
def refused(monkeypatch):
    """Makes a folder one that may not be listed and entered, also for root, whom permissions do not stop."""

    def refused(folder, refused_calls=("scandir", "listdir", "stat", "open")):
        def refuse(name, function):
            def refusing(path, *arguments, **options):
                inside = isinstance(path, str | os.PathLike) and Path(path).is_relative_to(folder)
                if inside and (name != "stat" or Path(path) != folder):
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return function(path, *arguments, **options)

            return refusing

        for name in refused_calls:
            monkeypatch.setattr(os, name, refuse(name, getattr(os, name)))

    return refused


def test_an_experiment_behind_a_link_uses_its_artifacts(outputs, recorded, tmp_path):
    graph = plan(rows(recorded())["tiny"], outputs)
    (outputs / "experiments" / "tiny-1").rename(tmp_path / "elsewhere")
    (outputs / "experiments" / "tiny-1").symlink_to(tmp_path / "elsewhere")
    assert look()[1].of(graph["metrics"].id) == ("experiments/tiny-1",)
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    assert "has no config.yaml" in look()[1].unresolved[0]


def test_a_folder_without_a_configuration_is_told(outputs, recorded):
    recorded()
    (outputs / "experiments" / "notes.txt").touch()
    assert look()[1].unresolved == ()
    (outputs / "experiments" / "tiny-1" / "config.yaml").rename(outputs / "experiments" / "tiny-1" / "results.json")
    told = look()[1].unresolved
    assert len(told) == 1 and "tiny-1: what this experiment needs is not known (it has no config.yaml)" in told[0]


@pytest.mark.parametrize("place", ["experiments", "experiments/tiny-1"])
def test_a_folder_that_cannot_be_looked_at_is_told(outputs, recorded, refused, place):
    recorded()
    refused(outputs / place)
    told = look()[1].unresolved
    assert len(told) == 1 and f"{outputs / place}: " in told[0] and "\n" not in told[0]


def test_a_folder_that_may_be_listed_and_not_entered_is_told(outputs, recorded, refused):
    recorded()
    refused(outputs / "experiments", ("stat", "open"))
    assert len(look()[1].unresolved) == 1 and "denied" in look()[1].unresolved[0]


def test_a_stage_that_cannot_be_looked_at_is_told(outputs, refused):
    for name in ("pretrain", "lost+found"):
        (outputs / name).mkdir(parents=True)
    refused(outputs / "lost+found")
    assert look()[1].unresolved == ()
    refused(outputs / "pretrain")
    assert f"{outputs / 'pretrain'}: it cannot be looked at" in look()[1].unresolved[0]


def test_experiments_on_storage_that_is_away_are_told(outputs):
    outputs.mkdir()
    (outputs / "experiments").symlink_to(outputs / "away")
    assert "mount it" in look()[1].unresolved[0]


def test_what_a_run_recorded_stays_in_use_whatever_a_plan_says_today(outputs, recorded, tmp_path, monkeypatch):
    for name in ("then", "now"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "list.txt").write_text(f"{name}.jpg")
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path / "then"))
    experiment = recorded(select={"strategy": "list", "fraction": 0.5, "list": "list.txt"})
    graph = plan(rows(experiment)["tiny"], outputs)
    record_needed(outputs / "experiments" / "tiny-1", needed(experiment, [graph], outputs))
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path / "now"))
    today = plan(rows(experiment)["tiny"], outputs)
    assert today["subset"].id != graph["subset"].id
    known = look()[1]
    assert all(known.of(one.id) for one in (*graph.values(), *today.values()))


def test_a_damaged_record_is_told(outputs, recorded):
    recorded()
    (outputs / "experiments" / "tiny-1" / "artifacts.json").write_text("{")
    assert "artifacts.json" in look()[1].unresolved[0]
