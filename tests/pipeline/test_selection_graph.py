"""Scores, strategies and their comparison with proxies that are given, on Ray."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from rayreid.config import Experiment
from rayreid.config.loading import change
from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore
from rayreid.models.backbones import build_backbone
from rayreid.models.embedding import Embedder
from rayreid.models.weights import save_backbone
from rayreid.pipeline.experiment_runner import run_stage
from rayreid.pipeline.selection_report import compare
from tiny_experiment import TINY

pytestmark = pytest.mark.ray

SIZE = tuple(TINY["backbone"]["img_size"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[Path]:
    """Three networks, each of which sees images its own way."""
    paths = [tmp_path_factory.mktemp("weights") / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        network = build_backbone("vit_tiny", "patchify", SIZE, 1)
        save_backbone(path, network, (0.3 + 0.1 * seed,) * 3, (0.5 - 0.1 * seed,) * 3)
    return paths


@pytest.fixture(scope="module")
def experiment(root, shared_ray, weights) -> Experiment:
    """The tiny experiment with the first two as proxies."""
    backbone = {"backbone": TINY["backbone"]}
    proxy = {**backbone, "source": str(weights[0]), "target": str(weights[1])}
    return Experiment.model_validate({**TINY, "proxy": proxy})


def vectors(store: ImageStore, rows: np.ndarray, weights: Path) -> np.ndarray:
    """Features of length 1, float64, by a plain loop."""
    embed = Embedder(weights, torch.device("cpu"), "fp32")
    features = embed(ImageBatch.collate([store.image(row) for row in rows])).double().numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_several_targets_are_scored_in_one_pass(experiment, weights):
    targets = [{"name": name, "proxy": str(path)} for name, path in zip("ab", weights[1:], strict=True)]
    [scores] = run_stage(change(experiment, {"score.targets": targets, "proxy.target": None}), "score")
    store = ImageStore(scores.inputs["pool"].path)
    table = pq.read_table(scores.path / "scores").to_pandas().set_index("key").loc[store.keys]
    source, a, b = (vectors(store, np.arange(len(store)), path) for path in weights)
    expected = {"cfs_a": (source * a).sum(1), "cfs_b": (source * b).sum(1)}
    expected["cfs"] = (expected["cfs_a"] + expected["cfs_b"]) / 2
    assert not np.allclose(expected["cfs_a"], expected["cfs_b"], atol=1e-3)
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, atol=1e-5)


@pytest.mark.parametrize("strategy", ["target_similarity", "cluster"])
def test_the_other_strategies_share_the_features(experiment, root, weights, strategy):
    [subset] = run_stage(change(experiment, {"select.strategy": strategy, "select.fraction": 0.3}), "select")
    assert subset.facts["images"] == 36
    manifest = json.loads((subset.path / "manifest.json").read_text())
    assert list(manifest["proxies"]) == ["source"] and manifest["strategy"] == strategy
    ranked = subset.inputs["priority"]
    assert len({path.name for path in (root / "features").iterdir()} & {ranked.inputs["features"].id}) == 1
    if strategy == "target_similarity":
        pool, target = (ImageStore(ranked.inputs[role].path) for role in ("pool", "target"))
        near = vectors(target, target.rows_of("train"), weights[0])
        expected = (vectors(pool, np.arange(len(pool)), weights[0]) @ near.T).max(axis=1)
        found = pq.read_table(ranked.path / "priority.parquet")["priority"].to_numpy()
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_selections_are_compared_on_a_page_and_in_mlflow(experiment, root):
    path = compare(experiment, export="parquet")
    html = path.read_text()
    for name in ("cfs", "target_similarity", "cluster", "random"):
        assert f'">{name}</h2>' in html
    assert len(list((root / "features").iterdir())) == 2  # of the pool and of the target, once each
    assert len(list((root / "places").iterdir())) == 1
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    tiny = client.get_experiment_by_name("tiny").experiment_id
    [run] = client.search_runs([tiny], "metrics.`auc.cfs.target_domain` >= 0")
    assert run.info.run_name == "tiny"
    logged = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"selections.html", "selections_map.html"} <= logged
    drawn = path.with_name("selections_map.html").read_text()
    assert 'href="selections_map.html"' in html and '"subset of cluster"' in drawn and "All 120 images" in drawn
    figures = run.data.metrics
    assert 0 < figures["coverage_p10.cfs.10"] <= figures["coverage_mean.cfs.10"] <= figures["coverage_mean.cfs.75"] <= 1
    assert figures["effective_rank.random.50"] > 1 and figures["cluster_entropy.cluster.50"] <= 1
    kept = pq.read_table(path.parent / "kept-parquet" / "cfs.parquet")
    assert kept.num_rows == 60 and kept["priority"].to_pylist() == sorted(kept["priority"].to_pylist(), reverse=True)


def test_a_combination_makes_what_its_parts_need_once(experiment, root):
    parts = [
        {"strategy": "target_similarity"},
        {"strategy": "cfs", "weight": 2},
        {"strategy": "cluster"},
        {"strategy": "random", "weight": 0.1},
    ]
    [subset] = run_stage(
        change(experiment, {"select.strategy": "combine", "select.parts": parts, "select.fraction": 0.3}), "select"
    )
    ranked = subset.inputs["priority"]
    assert list(ranked.inputs) == ["pool", "part.1_target_similarity", "part.2_cfs", "part.3_cluster", "features"]
    assert ranked.inputs["part.1_target_similarity"].inputs["features"].id == ranked.inputs["features"].id
    assert subset.facts["images"] == 36 and 0 < subset.facts["largest_cluster"] < 1
    manifest = json.loads((subset.path / "manifest.json").read_text())
    assert set(manifest["proxies"]) == {"source", "target"}


def test_a_pool_is_compared_with_images_without_labels(experiment, root, weights, tmp_path):
    for number in range(5):
        Image.effect_noise((32, 64), 20 * number).convert("RGB").save(tmp_path / f"{number}.png")
    changes = {
        "select.strategy": "target_similarity",
        "score.targets": [{"dataset": "folder", "root": str(tmp_path), "name": "cameras"}],
        "proxy.target": None,
    }
    [subset] = run_stage(change(experiment, changes), "select")
    ranked = subset.inputs["priority"]
    pool, target = (ImageStore(ranked.inputs[role].path) for role in ("pool", "target.cameras"))
    near = vectors(target, np.arange(5), weights[0])
    expected = (vectors(pool, np.arange(len(pool)), weights[0]) @ near.T).max(axis=1)
    found = pq.read_table(ranked.path / "priority.parquet")["priority"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_short_trainings_are_probed(experiment, root):
    path = compare(change(experiment, {"name": "short"}), ["random"], proxy_steps=1)
    assert "probe mAP after 1 steps" in path.read_text()
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    short = client.get_experiment_by_name("short").experiment_id
    [run] = client.search_runs([short], "metrics.`probe_end.random.75` >= 0")
    trained = {name for name in run.data.metrics if name.startswith("probe_end.")}
    expected = {"probe_end.random.50", "probe_end.random.75", "probe_end.all_images.100"}
    assert trained == expected  # 12 and 30 images are less than a batch of 32
