"""Results as tables, from artifacts that are put down as the stages would."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayreid.config.loading import load_experiment, rows
from rayreid.errors import UserError
from rayreid.pipeline.graph import plan
from rayreid.pipeline.results import results_of
from rayreid.sweeps.trials import trials

ROWS = [{"label": "none", "pretrain": "none"}, {"label": "half", "select.strategy": "random"}]
SCORES = {"rank1": 0.5, "rank5": 0.75, "rank10": 1.0, "mINP": 0.0625}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def finish(graph, mAP):
    """Complete the artifacts that results are read from."""
    facts = {
        "target": {"dataset": "synthetic"},
        "weights": {"images": 60, "steps": 9, "seconds": 60.0, "gpu_hours": 0.1},
        "model": {"seconds": 30.0, "gpu_hours": 0.02},
        "metrics": {"mAP": mAP, **SCORES, "seconds": 3},
    }
    for role in facts.keys() & graph.keys():
        if not graph[role].complete:
            graph[role].path.mkdir(parents=True)
            if role == "metrics":
                precision = np.array([mAP - 0.1, mAP + 0.1])
                table = pa.table({"key": ["a", "b"], "average_precision": precision, "first_match": [1, 2]})
                pq.write_table(table, graph[role].path / "queries.parquet")
            graph[role].finish(facts[role])


def test_rows_stand_in_one_table_by_label(tiny, root):
    experiment = load_experiment(tiny(compare=ROWS))
    graphs = {label: plan(row, root) for label, row in rows(experiment).items()}
    finish(graphs["half"], 0.3)
    found = results_of(experiment)
    assert found.unfinished == ("none",)
    assert found.table.index.tolist() == ["half"]
    cost = {"images": 60, "pretrain_steps": 9, "total_seconds": 93.0, "gpu_hours": 0.12}
    assert found.table.loc["half"].to_dict() == pytest.approx({"mAP": 0.3, **SCORES, **cost})
    assert found.runs[["row", "seed", "mAP"]].to_numpy().tolist() == [["half", 0, 0.3]]
    assert found.rows == ["none", "half"]
    assert found.folder.parent == root / "experiments"
    assert not found.folder.exists()
    assert "<table" in found._repr_html_()


def test_seeds_become_means_deviations_and_differences(tiny, root):
    experiment = load_experiment(tiny(compare=ROWS, seeds=[0, 1]))
    table = rows(experiment)
    for label, mAP in (("none · seed 0", 0.2), ("none · seed 1", 0.3), ("half · seed 0", 0.5), ("half · seed 1", 0.6)):
        assert label not in results_of(experiment).runs.get("row", [])
        finish(plan(table[label], root), mAP)
    found = results_of(experiment)
    assert found.unfinished == ()
    assert found.table["seeds"].tolist() == [2, 2]
    np.testing.assert_allclose(found.table["mAP"], [0.25, 0.55])
    np.testing.assert_allclose(found.table["mAP_std"], [0.1 / np.sqrt(2)] * 2)
    np.testing.assert_allclose(found.table["mAP_gain"], [np.nan, 0.3])
    assert found.runs["seed"].tolist() == [0, 0, 1, 1]
    assert np.isnan(results_of(experiment, "half").table.loc["half", "mAP_gain"])
    with pytest.raises(UserError, match="no row has this label; there are: none, half"):
        results_of(experiment, "other")


def test_a_row_counts_when_all_its_seeds_have_finished(tiny, root):
    experiment = load_experiment(tiny(compare=ROWS, seeds=[0, 1]))
    table = rows(experiment)
    finish(plan(table["none · seed 0"], root), 0.2)
    for seed in (0, 1):
        finish(plan(table[f"half · seed {seed}"], root), 0.5)
    found = results_of(experiment)
    assert found.unfinished == ("none · seed 1",)
    assert found.table.index.tolist() == ["half"]
    assert np.isnan(found.table.loc["half", "mAP_gain"])
    assert len(found.runs) == 3


def test_the_trials_of_a_sweep_stand_with_the_values_of_its_keys(tiny, root):
    experiment = load_experiment(tiny(pretrain="none", sweep={"parameters": {"finetune.lr": [0.1, 0.2]}}))
    table = trials(experiment)
    finish(plan(table["finetune.lr=0.2"], root), 0.4)
    found = results_of(experiment, trials=table)
    assert found.table.index.tolist() == ["finetune.lr=0.2"]
    assert found.table.iloc[0][["finetune.lr", "mAP"]].tolist() == [0.2, 0.4]
    assert found.unfinished == ("finetune.lr=0.1",)


def test_a_swept_entry_of_a_list_has_its_value(tiny, root):
    parts = [{"strategy": "random"}, {"strategy": "cluster"}]
    select = {"strategy": "combine", "parts": parts}
    sweep = {"parameters": {"select.parts.1.weight": [0.5, 2], "backbone.img_size.0": [64]}}
    experiment = load_experiment(tiny(pretrain="none", select=select, sweep=sweep))
    table = trials(experiment)
    finish(plan(next(iter(table.values())), root), 0.4)  # nothing is selected: it is both
    found = results_of(experiment, trials=table).table
    assert found["select.parts.1.weight"].tolist() == [0.5, 2] and found["backbone.img_size.0"].tolist() == [64, 64]


def test_nothing_finished_is_an_empty_table(tiny, root):
    found = results_of(load_experiment(tiny()))
    assert len(found.table) == len(found.runs) == 0
    assert not found.artifacts["complete"].any()


SHOWN = ["mAP", "rank1", "rank5", "rank10", "mINP", "images", "pretrain_steps", "total_seconds", "gpu_hours"]
SPREAD = ["mAP_std", "rank1_std", "rank5_std", "rank10_std", "mINP_std", "mAP_gain", "mAP_gain_low", "mAP_gain_high"]


@pytest.mark.parametrize(
    ("keys", "columns"),
    [
        ({"pretrain": "none"}, SHOWN),
        ({"compare": ROWS, "seeds": [0, 1]}, ["seeds", *SHOWN, *SPREAD]),
        ({"pretrain": "none", "sweep": {"parameters": {"finetune.lr": [0.1, 0.2]}}}, ["finetune.lr", *SHOWN]),
    ],
    ids=["rows", "seeds", "sweep"],
)
def test_the_columns_are_there_before_a_row_has_finished(tiny, root, keys, columns):
    experiment = load_experiment(tiny(**keys))
    table = trials(experiment) if experiment.sweep else None
    found = results_of(experiment, trials=table)
    assert found.table.columns.tolist() == columns
    assert found.runs.columns.tolist() == ["row", "seed", *SHOWN]
    assert len(found.table[["mAP", "rank1"]]) == 0 and found.table.index.name == "row"
    for one in (table or rows(experiment)).values():
        finish(plan(one, root), 0.4)
    assert results_of(experiment, trials=table).table.columns.tolist() == columns


def test_an_artifact_is_found_by_role_row_and_seed(tiny, root):
    experiment = load_experiment(tiny(compare=ROWS, seeds=[0, 1]))
    graph = plan(rows(experiment)["none · seed 1"], root)
    finish(graph, 0.2)
    found = results_of(experiment)
    assert found.artifact("model", "none", 1) == graph["model"].path
    assert found.artifact("target") == graph["target"].path
    for arguments, message in (
        (("model", "none"), "this model is not complete; run the experiment"),
        (("model",), "several rows have an artifact of role 'model'; name one: none, half"),
        (("weights", "none"), "no artifact of role 'weights' in row 'none'"),
    ):
        with pytest.raises(UserError, match=message):
            found.artifact(*arguments)
