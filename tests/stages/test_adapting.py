"""Adaptation with and without a source on Ray, tiny."""

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from rayreid.config.loading import load_experiment, rows
from rayreid.pipeline.experiment_runner import run
from rayreid.pipeline.graph import plan
from rayreid.storage.metrics_log import Journal
from tiny_experiment import TINY

pytestmark = pytest.mark.ray

ADAPT = {
    "epochs": 2,
    "iterations": 2,
    "clusters": 4,
    "instances": 2,
    "k1": 5,
    "k2": 2,
    "min_samples": 2,
    "evaluate_every": 1,
}
ROWS = [
    {"label": "raw", "adapt": {"method": "usl", "epochs": 0}},
    {"adapt": "usl"},
    {"label": "adapt=uda", "adapt": "uda", "finetune.evaluate_every": 1},
]


@pytest.fixture(scope="module")
def outcome(root, shared_ray, tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    source = {"dataset": "synthetic", "options": {**TINY["target"]["options"], "seed": 5}}
    tree = {**TINY, "source": source, "select": {"fraction": 1.0}, "adapt": ADAPT, "compare": ROWS}
    path.write_text(yaml.safe_dump({**tree, "resources": {"workers": 2, "cpus_per_worker": 1}}))
    experiment = load_experiment(path)
    results = run(experiment)
    return {row.label: row for row in results}, {label: plan(row, root) for label, row in rows(experiment).items()}


def test_every_row_has_its_metrics(outcome):
    results, graphs = outcome
    assert list(results) == ["raw", "adapt=usl", "adapt=uda"]
    assert all(0 < row.scores["mAP"] <= 1 for row in results.values())
    assert graphs["raw"]["weights"].id == graphs["adapt=usl"]["weights"].id == graphs["adapt=uda"]["weights"].id
    assert results["adapt=uda"].seconds > graphs["adapt=uda"]["adapted"].facts["seconds"]


@pytest.mark.parametrize("label", ["adapt=usl", "adapt=uda"])
def test_labels_and_figures_of_every_epoch(outcome, root, label):
    artifact = outcome[1][label]["adapted"]
    assert [path.name for path in sorted((artifact.path / "labels").iterdir())] == ["0001.npz", "0002.npz"]
    found = [row for row in Journal(artifact.path / "metrics.jsonl").history() if "clusters" in row]
    assert [row["step"] for row in found] == [0, 2]
    facts = artifact.facts
    assert facts["steps"] == 4 and facts["images_seen"] == 32 and facts["images"] == 60 and facts["workers"] == 2
    with np.load(artifact.path / "labels" / "0002.npz") as file:
        assert file["labels"].max() + 1 == facts["final_clusters"] >= 4
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    one = client.get_run(facts["run"])
    assert [metric.step for metric in client.get_metric_history(one.info.run_id, "ari")] == [0, 2]
    assert [metric.step for metric in client.get_metric_history(one.info.run_id, "eval_mAP")] == [1, 3]
    figures = {file.path for file in client.list_artifacts(one.info.run_id, "figures")}
    assert figures == {"figures/loss.png", "figures/eval.png", "figures/labels.png", "figures/clusters"}
    sheets = {file.path for file in client.list_artifacts(one.info.run_id, "figures/clusters")}
    assert sheets == {"figures/clusters/0001.png", "figures/clusters/0002.png"}
    assert one.data.tags["adapt"] == label.removeprefix("adapt=")


def test_what_was_seen_last_is_what_is_evaluated(outcome):
    results, graphs = outcome
    for label in ("adapt=usl", "adapt=uda"):
        last = Journal(graphs[label]["adapted"].path / "metrics.jsonl").history()[-1]
        assert last["eval_mAP"] == pytest.approx(results[label].scores["mAP"], abs=1e-4)
        assert last["eval_rank1"] == pytest.approx(results[label].scores["rank1"], abs=1e-4)


def test_fine_tuning_on_the_source_was_looked_at_by_both_workers(outcome):
    model = outcome[1]["adapt=uda"]["model"]
    assert model.facts["workers"] == 2 and 0 < model.facts["final_eval_mAP"] <= 1
    assert {path.name for path in model.path.glob("*.safetensors")} == {"model.safetensors", "best.safetensors"}
    assert outcome[1]["adapt=uda"]["adapted"].inputs["weights"].id == model.id
