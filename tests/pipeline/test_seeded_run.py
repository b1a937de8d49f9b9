"""Two rows with two seeds each, tiny, on Ray: one run per row and seed, one table, one ledger."""

import csv
import json

import pytest
from mlflow import MlflowClient

from rayreid.config.loading import load_experiment
from rayreid.pipeline.experiment_folder import folder_of
from rayreid.pipeline.experiment_runner import run
from rayreid.pipeline.ledger import enter
from rayreid.tracking.revision import git_sha

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.thorough]


def test_rows_and_seeds_are_run_compared_and_entered(root, shared_ray, tmp_path, capsys):
    import yaml

    from tiny_experiment import TINY

    path = tmp_path / "tiny.yaml"
    shrunk = {**TINY, "pretrain": {**TINY["pretrain"], "steps": 2}, "seeds": [0, 3]}
    shown = [{"label": "none", "pretrain": "none"}, {"label": "random half", "select.strategy": "random"}]
    path.write_text(yaml.safe_dump({**shrunk, "compare": shown}))
    experiment = load_experiment(path)
    results = run(experiment)
    labels = ["none · seed 0", "random half · seed 0", "none · seed 3", "random half · seed 3"]
    assert [row.label for row in results] == labels
    assert [row.steps for row in results] == [0, 2, 0, 2]
    assert len(list((root / "select").iterdir())) == 2  # each seed draws its own half
    for stage in ("finetune", "evaluate"):
        assert len(list((root / stage).iterdir())) == 4
    table = capsys.readouterr().out
    assert "mean ± standard deviation over 2 seeds (0, 3)" in table and "against none" in table
    assert "rows share their steps (2)" in table

    bare, half = json.loads((folder_of(root, experiment) / "results.json").read_text())
    assert (bare["label"], half["label"], half["against"]) == ("none", "random half", "none")
    assert half["mAP_gain"] == pytest.approx(half["mAP"] - bare["mAP"])
    assert [one["seed"] for one in half["runs"]] == [0, 3]

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], max_results=100)
    rows = {run.info.run_name: run for run in found if run.data.tags["level"] == "experiment"}
    assert rows.keys() == set(labels)
    tags = rows["random half · seed 3"].data.tags
    assert (tags["row"], tags["seed"], tags["budget"]) == ("random half", "3", "steps=2")
    (top,) = (run for run in found if run.data.tags["level"] == "comparison")
    assert top.data.metrics["mAP.random_half"] == pytest.approx(half["mAP"])
    assert top.data.metrics["mAP_gain_low.random_half"] == pytest.approx(half["mAP_gain_low"])
    assert top.data.tags["budget"] == "steps=2" and top.data.tags["budget.shared"] == "rows share their steps (2)"

    assert enter(experiment, str(tmp_path / "ledger.csv")).added == 4
    with (tmp_path / "ledger.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["row"], line["seed"]) for line in lines] == [tuple(label.split(" · seed ")) for label in labels]
    assert {line["commit"] for line in lines} == {git_sha()} and all("cores" in line["machine"] for line in lines)
    assert 0 < float(lines[1]["probe_start"]) < 1 and 0 < float(lines[1]["probe_end"]) < 1
