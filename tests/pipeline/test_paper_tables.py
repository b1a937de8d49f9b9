"""The paper's tables as experiment files: what each row would make, and that the reduced ones have every row."""

import runpy
from pathlib import Path

import pytest

from rayreid.config.loading import load_experiment, rows
from rayreid.data.datasets.market1501 import Market1501
from rayreid.data.datasets.table import Table
from rayreid.pipeline.graph import plan, shared

REPO = Path(__file__).parents[2]
PAPER = REPO / "experiments" / "paper"
NAMES = ("table_1", "table_4")
SAID = "runs, not evidence: "


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The rows of a file with their artifacts; a file stands in for every one that they read."""
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path))

    def planned(name):
        found = rows(load_experiment(PAPER / f"{name}.yaml"))
        for row in found.values():
            for file in (row.backbone.weights, row.pool.provenance):
                if file is not None and not file.startswith("timm:"):
                    (tmp_path / file).parent.mkdir(exist_ok=True)
                    (tmp_path / file).write_text(f"key,origin\n{file},market1501\n")
        return found, {label: plan(row, tmp_path / "root") for label, row in found.items()}

    return planned


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}_reduced" for name in NAMES)])
def test_every_row_can_be_planned_and_makes_a_model_of_its_own(table, name):
    found, graphs = table(name)
    models = [str(graph["model"]) for graph in graphs.values()]
    assert len(set(models)) == len(models) == len(found) > 10
    for label, row in found.items():
        assert "metrics" in graphs[label]
        if row.pretrain.method != "none":
            assert row.pretrain.recipe(row.backbone).lr > 0
            assert row.pretrain.epochs == (1 if name.endswith("reduced") else 100)


@pytest.mark.parametrize("name", NAMES)
def test_the_reduced_table_has_every_row_and_says_what_it_is_worth(table, name):
    full, reduced = table(name)[0], table(f"{name}_reduced")[0]
    assert list(reduced) == [SAID + label.replace("ViT-S", "ViT") for label in full]
    for row, small in zip(full.values(), reduced.values(), strict=True):
        assert row.pretrain.method == small.pretrain.method
        assert row.backbone.stem == small.backbone.stem
        assert (row.backbone.weights is None) == (small.backbone.weights is None)
        assert row.backbone.name.partition("_")[0] == small.backbone.name.partition("_")[0]
        assert (row.select.strategy, row.select.fraction) == (small.select.strategy, small.select.fraction)


def test_the_first_table_pre_trains_on_the_whole_pool_and_scores_nothing(table):
    _, graphs = table("table_1")
    for graph in graphs.values():
        assert not {"subset", "scores", "source_proxy"} & set(graph)
    assert [artifact.stage for artifact in shared(graphs)] == ["ingest", "ingest"]


def test_the_fourth_table_scores_the_pool_once_for_both_targets_together(table):
    _, graphs = table("table_4")
    chosen = [graph for label, graph in graphs.items() if label.startswith("CFS")]
    assert len({str(graph["scores"]) for graph in chosen}) == 1
    assert all("target_proxy.both" in graph and "target.both" in graph for graph in chosen)
    assert sum("scores" in graph for graph in graphs.values()) == 5


def test_the_reduced_target_is_a_part_of_the_whole_one_in_which_queries_are_found(tmp_path):
    images = tmp_path / "images"
    shots = [
        ("bounding_box_train", range(1, 20), 4),
        ("query", range(30, 50), 1),
        ("bounding_box_test", range(30, 50), 3),
    ]
    for folder, pids, count in shots:
        (images / "whole" / folder).mkdir(parents=True)
        for name in (
            f"{pid:04d}_c{cam}s1_{shot:06d}_00.jpg" for pid in pids for cam in (1, 2) for shot in range(count)
        ):
            (images / "whole" / folder / name).touch()
    script = runpy.run_path(str(REPO / "benchmarks" / "reduced_inputs.py"))
    whole = Market1501(images / "whole").records()
    script["write_table"](tmp_path / "target.csv", script["persons"](whole), images)
    part = list(Table(tmp_path / "target.csv", images="images").records())
    facts = {(r.key, r.pid, r.camid, r.split) for r in part}
    assert len(facts) == len(part) and facts < {(r.key, r.pid, r.camid, r.split) for r in whole}
    pids = {split: {r.pid for r in part if r.split == split} for split in ("train", "query", "gallery")}
    assert len(pids["train"]) == 12 and len(pids["query"]) == 8 and pids["query"] == pids["gallery"]
    assert sum(r.split == "train" for r in part) == 12 * 2 * 2 and all(Path(r.path).is_file() for r in part)
