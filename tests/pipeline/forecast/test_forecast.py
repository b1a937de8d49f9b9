"""The forecast of a whole file, its tree, its JSON and its chart: without Ray, and without a trace on the disk."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from rayreid.config.loading import change, load_experiment, rows
from rayreid.console import Screen
from rayreid.errors import UserError, escaped
from rayreid.pipeline.forecast.forecasting import forecast
from rayreid.pipeline.forecast.mermaid import mermaid_of
from rayreid.pipeline.forecast.planned_machine import PlannedMachine
from rayreid.pipeline.forecast.standings import State
from rayreid.pipeline.forecast.tree import content_of, show
from rayreid.pipeline.graph import plan
from rayreid.storage.contents import RECORD
from rayreid.training.checkpoint import Checkpoints

ROWS = [{"label": "none", "pretrain": "none"}, {"label": "whole", "select.fraction": 1.0}, {"label": "half"}]
MACHINE = PlannedMachine(2, 0, "this one")


@pytest.fixture
def whole(tiny, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a plan starts nothing")

    monkeypatch.setattr("ray.init", refuse)
    return load_experiment(tiny(compare=ROWS))


@pytest.fixture
def forecast_of(whole, tmp_path):
    def forecast_of(machine=MACHINE, places=1, **changes):
        one = change(whole, changes)
        return forecast(rows(one), one, tmp_path / "outputs", machine, "comparison", places)

    return forecast_of


def shown(found, price=None):
    text = io.StringIO()
    show(Screen(Console(file=text, soft_wrap=True)), found, price)
    return text.getvalue()


def finish(artifact):
    with artifact.writing():
        artifact.finish({"images": 3, "seconds": 1.0})


def test_a_new_root_makes_everything_and_stays_as_it_is(forecast_of, tmp_path):
    found = forecast_of()
    assert found.count(State.MADE) == len(found.steps) == len({step.artifact.id for step in found.steps})
    assert not (tmp_path / "outputs").exists()
    assert found.seconds.likely > sum(step.estimate.seconds.likely for step in found.steps)
    assert found.from_table and not found.earlier_runs and not found.notes


def test_what_rows_share_is_there_once_with_its_users(forecast_of):
    steps = {str(step.artifact): step for step in forecast_of().steps}
    shared = {step.role: step.users for step in steps.values() if step.shared}
    assert shared["target"] == ("none", "whole", "half") and shared["pool"] == ("whole", "half")


def test_what_is_complete_costs_nothing(forecast_of, whole, tmp_path):
    for graph in (plan(row, tmp_path / "outputs") for row in rows(whole).values()):
        finish(graph["model"])
    found = forecast_of()
    reused = [step for step in found.steps if step.standing.state is State.REUSED]
    assert {step.role for step in reused} == {"model"} and all(step.estimate is None for step in reused)
    assert len(reused) + found.count(State.MADE) == len(found.steps)


def test_a_half_made_one_says_how_far_it_is(forecast_of, whole, tmp_path):
    model = plan(rows(whole)["none"], tmp_path / "outputs")["model"]
    before = next(step for step in forecast_of().steps if step.artifact.id == model.id)
    (model.path / "checkpoints").mkdir(parents=True)
    Checkpoints(model.path / "checkpoints").save(1, {"step": 1})
    found = forecast_of()
    step = next(step for step in found.steps if step.artifact.id == model.id)
    assert step.standing.state is State.RESUMED and step.estimate.seconds.likely < before.estimate.seconds.likely
    assert "1 of 2 steps are done" in shown(found)


def test_the_reason_is_the_difference_to_the_nearest(forecast_of, whole, tmp_path):
    finish(plan(rows(change(whole, {"finetune.lr": 0.1}))["none"], tmp_path / "outputs")["model"])
    text = shown(forecast_of())
    assert "finetune.lr is 0.0004, there 0.1" in text


def test_a_damaged_artifact_is_made_again_and_says_why(forecast_of, whole, tmp_path):
    model = plan(rows(whole)["none"], tmp_path / "outputs")["model"]
    finish(model)
    (model.path / RECORD).write_text("{")
    text = shown(forecast_of())
    assert "it is damaged: artifact.json cannot be understood" in text


def test_a_resumed_artifact_says_what_is_damaged(forecast_of, whole, tmp_path):
    model = plan(rows(whole)["none"], tmp_path / "outputs")["model"]
    (model.path / "checkpoints").mkdir(parents=True)
    Checkpoints(model.path / "checkpoints").save(1, {"step": 1})
    files = {"weights": {"size": 9, "checksum": ""}}
    (model.path / RECORD).write_text(json.dumps({"recipe": model.identity, "facts": {}, "files": files}))
    assert "1 of 2 steps are done; it is damaged: weights is missing" in shown(forecast_of())


def test_damage_is_in_the_tree_and_not_in_the_log(forecast_of, whole, tmp_path, caplog):
    for one in plan(rows(whole)["half"], tmp_path / "outputs").values():
        one.path.mkdir(parents=True)
        files = {"a": {"size": 3, "checksum": ""}}
        (one.path / RECORD).write_text(json.dumps({"recipe": one.identity, "facts": {}, "files": files}))
    assert "it is damaged: a is missing" in shown(forecast_of()) and not caplog.records


@pytest.mark.parametrize("name", ["[/x]", "[red]", "end\\", "two\nlines"])
def test_names_are_shown_as_they_are(whole, tmp_path, name):
    some = {name: rows(whole)["none"], "half": rows(whole)["half"]}
    found = forecast(some, whole, tmp_path / name, MACHINE, "comparison")
    text = shown(replace(found, name=name, notes=(name,), unplanned=(name,)))
    assert text.count(escaped(name)) == 5


def test_a_missing_dataset_leaves_the_rest(forecast_of):
    found = forecast_of(pool={"dataset": "folder", "root": "nowhere"})
    assert {step.role for step in found.unknown} >= {"pool", "weights", "scores"}
    assert found.seconds.likely > 0 and "model" in {step.role for step in found.to_make if step.estimate}
    text = shown(found)
    assert "nowhere does not exist; what depends on its size is not estimated" in text
    assert "not estimated: the size of dataset folder nowhere" in text
    assert "artifacts that cannot be estimated" in text


def test_nothing_that_can_be_estimated_gives_no_total(forecast_of):
    nowhere = {"dataset": "folder", "root": "nowhere"}
    text = shown(forecast_of(pool=nowhere, target=nowhere))
    assert "nothing of what would be made can be estimated" in text and "time  " not in text


def test_what_a_run_would_refuse_is_said(forecast_of):
    found = forecast_of(finetune={"identities": 500})
    assert [note for note in found.notes if note.startswith("rayreid run would refuse this: finetune.identities=500")]


def test_no_weights_are_fetched(forecast_of, monkeypatch):
    def fetch(*args):
        raise AssertionError("a plan downloads nothing")

    monkeypatch.setattr("rayreid.stages.training.initial_weights.check_weights", fetch)
    assert not forecast_of(backbone={"weights": "timm:vit_tiny_patch16_224.augreg_in21k"}).notes


def test_a_row_that_cannot_be_planned_leaves_the_others(forecast_of, whole, tmp_path):
    listed = [*ROWS, {"label": "listed", "select.strategy": "list", "select.list": "no.txt"}]
    found = forecast_of(compare=listed)
    assert found.unplanned[0].startswith("listed: ") and "no.txt" in shown(found)
    with pytest.raises(UserError, match=r"no\.txt"):
        forecast_of(compare=listed[-1:])


def test_gpu_hours_are_told_on_a_machine_without_gpus(forecast_of):
    with_gpus, without = forecast_of(PlannedMachine(16, 1)), forecast_of()
    assert without.gpu_hours.likely == pytest.approx(with_gpus.gpu_hours.likely)
    assert forecast_of(resources={"gpu": False}).gpu_hours.likely == 0


def test_the_price_is_that_of_the_gpu_hours(forecast_of):
    found = forecast_of(PlannedMachine(16, 1))
    assert content_of(found, 2.0)["total"]["price"]["likely"] == pytest.approx(2 * found.gpu_hours.likely, abs=0.01)
    assert "at 2 per GPU-hour" in shown(found, 2.0) and content_of(found)["total"]["price"] is None


def test_more_places_take_less_time(forecast_of):
    assert forecast_of(places=3).seconds.likely < forecast_of().seconds.likely


def test_the_json_has_everything_of_every_artifact(forecast_of):
    found = json.loads(json.dumps(content_of(forecast_of())))
    assert found["rows"] == ["none", "whole", "half"] and found["total"]["made"] == len(found["artifacts"])
    weights = next(one for one in found["artifacts"] if one["role"] == "weights")
    assert weights["state"] == "made" and weights["steps"] == 3 and weights["begins"] > 0
    assert weights["estimated_from"] == "table" and weights["seconds"]["low"] < weights["seconds"]["high"]
    assert sorted(name for wave in found["waves"] for name in wave) == sorted(
        one["artifact"].partition("/")[2] for one in found["artifacts"]
    )


def test_the_chart_has_every_artifact_and_arrow(forecast_of):
    found = forecast_of(compare=[{"label": 'a "b" [c]'}])
    lines = mermaid_of(found).splitlines()
    assert lines[0] == "flowchart LR"
    arrows = [line for line in lines if "-->" in line]
    assert len(arrows) == sum(len({one.id for one in step.artifact.inputs.values()}) for step in found.steps)
    assert all(line.count('"') in (0, 2) for line in lines)


def test_nothing_to_make_takes_no_time(forecast_of, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("rayreid.storage.artifacts.Artifact.complete", True)
    found = forecast_of()
    assert found.seconds.high == 0 and not found.to_make
    assert "everything is complete: a run would make nothing" in shown(found)
