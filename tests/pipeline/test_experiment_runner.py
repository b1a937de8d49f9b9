"""The whole method, tiny, on Ray; then again, to see that nothing runs twice."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from rayreid.config.loading import load_experiment, rows
from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore
from rayreid.evaluation.probe import choose_probe
from rayreid.models.embedding import Embedder
from rayreid.pipeline.experiment_runner import run, run_stage
from rayreid.pipeline.graph import plan
from rayreid.selection.cfs import cfs
from rayreid.stages import finetune, pretrain
from rayreid.storage.metrics_log import Journal

pytestmark = pytest.mark.ray

ROWS = [{"label": "none", "pretrain": "none"}, {"label": "cfs half", "select.fraction": 0.5}]


@pytest.fixture(scope="module")
def outcome(root, shared_ray, tmp_path_factory):
    import yaml

    from tiny_experiment import TINY

    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "compare": ROWS}))
    experiment = load_experiment(path)
    return experiment, run(experiment), run(experiment)


def graph_of(experiment, label, root):
    return plan(rows(experiment)[label], root)


def stage_runs(root, stage):
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    return client.search_runs([experiment.experiment_id], f"tags.stage = '{stage}'"), client


def test_every_row_has_its_metrics(outcome):
    _, first, _ = outcome
    assert [row.label for row in first] == ["none", "cfs half"]
    assert [row.images for row in first] == [0, 60]
    for row in first:
        assert 0 <= row.scores["mAP"] <= 1 and 0 <= row.scores["rank1"] <= row.scores["rank10"] <= 1
    assert 0 <= first[1].auc <= 1


def test_what_is_complete_is_not_run_again(outcome, root):
    _, first, second = outcome
    assert first == second
    for stage, times in {"ingest": 2, "pretrain": 2, "score": 1, "select": 1, "finetune": 3, "evaluate": 2}.items():
        assert len(list((root / stage).iterdir())) == times
        assert len(stage_runs(root, stage)[0]) == times


def test_every_pool_image_is_scored_as_a_plain_loop_would(outcome, root):
    experiment, _, _ = outcome
    graph = graph_of(experiment, "cfs half", root)
    store = ImageStore(graph["pool"].path)
    table = pq.read_table(graph["scores"].path / "scores")
    scored = dict(zip(table["key"].to_pylist(), table["cfs"].to_pylist(), strict=True))
    assert len(scored) == len(store) == 120
    cpu = torch.device("cpu")
    source = Embedder(graph["source_proxy"].path / pretrain.WEIGHTS, cpu, "fp32")
    target = Embedder(graph["target_proxy"].path / finetune.WEIGHTS, cpu, "fp32")
    images = ImageBatch.collate([store.image(row) for row in range(32)])
    expected = cfs(source(images), target(images), store.keys[:32]).numpy()
    np.testing.assert_allclose([scored[key] for key in store.keys[:32]], expected, atol=1e-5)


def test_the_subset_holds_the_highest_scores(outcome, root):
    experiment, _, _ = outcome
    graph = graph_of(experiment, "cfs half", root)
    table = pq.read_table(graph["scores"].path / "scores").to_pandas().set_index("key")["cfs"]
    chosen = set(pq.read_table(graph["subset"].path / "subset.parquet")["key"].to_pylist())
    assert len(chosen) == 60
    assert table[list(chosen)].min() >= table.drop(list(chosen)).max()


def test_runs_nest_and_carry_what_they_are_compared_by(outcome, root):
    evaluations, client = stage_runs(root, "evaluate")
    parents = {client.get_run(one.data.tags["mlflow.parentRunId"]).info.run_name: one for one in evaluations}
    assert set(parents) == {"none", "cfs half"}
    row = client.get_run(parents["cfs half"].data.tags["mlflow.parentRunId"])
    assert row.data.tags["strategy"] == "cfs" and row.data.tags["fraction"] == "0.5"
    assert {"mAP", "rank1", "rank5", "rank10", "mINP", "gpu_hours", "images"} <= set(row.data.metrics)
    assert row.data.params["pretrain.epochs"] == "1"
    assert row.info.status == "FINISHED"
    top = client.get_run(row.data.tags["mlflow.parentRunId"])
    assert top.info.run_name == "tiny" and "mlflow.parentRunId" not in top.data.tags


def test_stage_runs_hold_figures_datasets_and_steps(outcome, root):
    scores, client = stage_runs(root, "score")
    figures = {file.path for file in client.list_artifacts(scores[0].info.run_id, "figures")}
    assert figures == {f"figures/{name}.png" for name in ("cfs_histogram", "cfs_highest", "cfs_median", "cfs_lowest")}
    trainings, _ = stage_runs(root, "pretrain")
    for training in trainings:
        assert "pool" in [given.dataset.name for given in training.inputs.dataset_inputs]
        steps = [metric.step for metric in client.get_metric_history(training.info.run_id, "loss")]
        assert steps == sorted(set(steps)) and steps[-1] == training.data.metrics["steps"] - 1
        assert client.list_artifacts(training.info.run_id, "weights")


def test_pre_trainings_are_probed_on_the_target_s_train_split(outcome, root):
    experiment, _, _ = outcome
    graph = graph_of(experiment, "cfs half", root)
    trainings, client = stage_runs(root, "pretrain")
    for training in trainings:
        probes = client.get_metric_history(training.info.run_id, "probe_mAP")
        assert [probe.step for probe in probes] == [-1, training.data.metrics["steps"] - 1]
        assert all(0 < probe.value <= 1 for probe in probes)
        assert {"figures/loss.png", "figures/probe.png"} <= {
            file.path for file in client.list_artifacts(training.info.run_id, "figures")
        }
        assert training.data.tags["resolved.probe_every"] == "1"
        assert {given.dataset.name for given in training.inputs.dataset_inputs} == {"pool", "target"}
    for role in ("source_proxy", "weights"):
        facts = graph[role].facts
        rows = Journal(graph[role].path / "metrics.jsonl").history()
        probed = {row["epoch"]: row["probe_mAP"] for row in rows if "probe_mAP" in row}
        assert list(probed) == [0, 1] and probed[facts["best_probe_epoch"]] == facts["best_probe_mAP"]
        assert facts["best_probe_mAP"] == max(probed.values())
        assert rows[-1]["probe_mAP"] == facts["final_probe_mAP"] and rows[-1]["loss"] == facts["final_loss"]


def test_the_probe_is_what_the_kept_weights_give(outcome, root):
    graph = graph_of(outcome[0], "cfs half", root)
    store = ImageStore(graph["target"].path)
    probe = choose_probe(store.pids, store.camids, store.rows_of("train"), 12_000)
    assert set(store.splits[probe.rows]) == {"train"}
    embed = Embedder(graph["weights"].path / pretrain.WEIGHTS, torch.device("cpu"), "fp32")
    features = embed(ImageBatch.collate([store.image(row) for row in probe.rows]))
    expected = probe.score(features)
    found = {name: graph["weights"].facts[f"final_{name}"] for name in expected}
    assert found.pop("probe_effective_rank") == pytest.approx(expected.pop("probe_effective_rank"), rel=1e-3)
    assert expected == pytest.approx(found, abs=1e-4)


def test_nothing_needed_only_on_the_way_is_left(outcome, root):
    assert not list(root.glob("*/*/checkpoints")) and not list(root.glob("*/*/ray"))
    assert not list(root.glob("*/*/lease.json"))


def test_one_stage_alone(outcome, root):
    experiment, _, _ = outcome
    made = run_stage(experiment, "select")
    assert [artifact.stage for artifact in made] == ["select"] and made[0].complete
