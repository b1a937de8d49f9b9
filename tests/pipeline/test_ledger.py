"""The ledger, from artifacts that are put down as the stages would."""

import csv
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayreid.config.loading import load_experiment, rows
from rayreid.errors import UserError
from rayreid.pipeline import ledger as module
from rayreid.pipeline.experiment_folder import digest_of
from rayreid.pipeline.graph import plan
from rayreid.pipeline.ledger import COLUMNS, enter
from rayreid.storage.metrics_log import Journal

ROWS = [
    {"label": "none", "pretrain": "none"},
    {"label": "random, half", "select.strategy": "random"},
    {"label": "similar", "select.strategy": "target_similarity"},
]
SCORES = {"mAP": 0.25, "rank1": 0.5, "rank5": 0.75, "rank10": 1.0, "mINP": 0.0625}
RECORDED = {"git_sha": "c0ffee", "finished": "2026-01-02T03:04:05Z", "run": "r1"}


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    root = tmp_path / "outputs"
    monkeypatch.setenv("RAYREID_ROOT", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return root


@pytest.fixture
def experiment(tiny, outputs):
    return load_experiment(tiny(compare=ROWS, seeds=[0, 2], pretrain={"steps": 9, "batch_size": 32}))


def finish(graph, warnings=(), **recorded):
    """Complete the artifacts that a line is made from; datasets stay empty."""
    facts = {
        "target": {"dataset": "synthetic", "seconds": 1},
        "weights": {"images": 60, "steps": 9, "seconds": 60.4, "gpu_hours": 0.1, "machine": "CPU, 2 cores"},
        "model": {"seconds": 30.2, "gpu_hours": 0.02, "machine": "CPU, 2 cores"},
        "priority": {"auc": 0.87654, "seconds": 5},
        "metrics": {**SCORES, "seconds": 3, **recorded},
    }
    for role in facts.keys() & graph.keys():
        if not graph[role].complete:
            graph[role].path.mkdir(parents=True)
            if role == "priority":  # of an image whose origin is not known
                pq.write_table(pa.table({"key": ["x"], "priority": [0.5]}), graph[role].path / "priority.parquet")
            graph[role].finish(facts[role] | ({"warnings": list(warnings)} if role == "weights" and warnings else {}))
    if "weights" in graph:
        journal = Journal(graph["weights"].path / "metrics.jsonl")
        journal.append(
            {"step": -1, "epoch": 0.0, "probe_mAP": 0.065, "probe_rank1": 0.1, "probe_effective_rank": 7.123}
        )
        journal.append({"step": 8, "epoch": 2.25, "loss": 5.0})
        journal.append({"step": 8, "epoch": 2.25, "probe_mAP": 0.126, "probe_rank1": 0.2, "probe_effective_rank": 8.5})


def lines_of(path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_finished_rows_become_lines_with_fixed_digits(experiment, outputs, tmp_path):
    for label in ("none · seed 0", "random, half · seed 2", "similar · seed 2"):
        finish(plan(rows(experiment)[label], outputs), ["learned little", "rank fell"], **RECORDED)
    path = tmp_path / "new folder/ledger.csv"
    entered = enter(experiment, str(path), note="first, try")
    assert (entered.added, entered.known, entered.unfinished) == (3, 0, 3)
    bare, half, similar = lines_of(path)
    row = rows(experiment)["random, half · seed 2"]
    assert tuple(half) == COLUMNS
    assert half == {
        "experiment": "tiny",
        "row": "random, half",
        "seed": "2",
        "date": "2026-01-02T03:04:05Z",
        "config": digest_of(row),
        "commit": "c0ffee",
        "machine": "CPU, 2 cores",
        "backbone": "vit_tiny",
        "stem": "patchify",
        "img_size": "64x32",
        "method": "dino",
        "strategy": "random",
        "fraction": "0.5",
        "images": "60",
        "budget": "steps=9",
        "steps": "9",
        "target": "synthetic",
        "adapt": "none",
        "probe_start": "0.0650",
        "probe_end": "0.1260",
        "effective_rank_start": "7.12",
        "effective_rank_end": "8.50",
        "auc": "",
        "mAP": "0.2500",
        "rank1": "0.5000",
        "mINP": "0.0625",
        "seconds": "94",
        "gpu_hours": "0.120",
        "test_images": "0",
        "warnings": "learned little | rank fell",
        "metrics": plan(row, outputs)["metrics"].id,
        "note": "first, try",
    }
    assert (bare["budget"], bare["steps"], bare["probe_start"], bare["strategy"]) == ("none", "0", "", "none")
    assert similar["auc"] == "0.877"


def test_a_line_is_entered_once_and_new_ones_are_appended(experiment, outputs, tmp_path):
    path = tmp_path / "ledger.csv"
    first, second = (plan(rows(experiment)[f"none · seed {seed}"], outputs) for seed in (0, 2))
    finish(first, **RECORDED)
    enter(experiment, str(path))
    before = path.read_text()
    assert enter(experiment, str(path)).added == 0 and path.read_text() == before
    finish(second, **RECORDED)
    entered = enter(experiment, str(path))
    assert (entered.added, entered.known) == (1, 1)
    assert path.read_text().startswith(before) and [line["seed"] for line in lines_of(path)] == ["0", "2"]
    other = experiment.model_copy(update={"name": "other"})
    assert enter(other, str(path)).added == 2  # what two experiments share stands under the names of both


def test_time_and_gpu_hours_of_an_interrupted_stage_are_left_empty(experiment, outputs, tmp_path):
    finish(plan(rows(experiment)["none · seed 0"], outputs), **RECORDED, resumed=True)
    finish(plan(rows(experiment)["none · seed 2"], outputs), **RECORDED, resumed=False)
    enter(experiment, str(tmp_path / "ledger.csv"))
    assert [(line["seconds"], line["gpu_hours"]) for line in lines_of(tmp_path / "ledger.csv")] == [
        ("", ""),
        ("33", "0.020"),
    ]


def test_a_row_whose_list_is_missing_does_not_keep_the_others_out(tiny, outputs, tmp_path):
    listed = {"label": "listed", "select.strategy": "list", "select.list": str(tmp_path / "away.txt")}
    experiment = load_experiment(tiny(compare=[listed, ROWS[0]], pretrain={"steps": 9, "batch_size": 32}))
    finish(plan(rows(experiment)["none"], outputs), **RECORDED)
    entered = enter(experiment, str(tmp_path / "ledger.csv"))
    assert (entered.added, entered.unfinished) == (1, 0)
    assert entered.unknown == (f"listed: {tmp_path / 'away.txt'}: no such file (select.list)",)
    with pytest.raises(UserError, match=r"no row can be looked up: listed: .*away\.txt: no such file"):
        enter(load_experiment(tiny(compare=[listed])), str(tmp_path / "other.csv"))


def test_a_label_like_a_formula_is_marked_and_known_again(tiny, outputs, tmp_path):
    experiment = load_experiment(tiny(compare=[{"label": "=1+1", "pretrain": "none"}]))
    finish(plan(rows(experiment)["=1+1"], outputs), **RECORDED)
    path = tmp_path / "ledger.csv"
    assert (enter(experiment, str(path)).added, enter(experiment, str(path)).known) == (1, 1)
    assert [line["row"] for line in lines_of(path)] == ["'=1+1"]
    path.write_text(path.read_text().replace("'=1+1", "=1+1"))  # as a former version wrote it
    assert enter(experiment, str(path)).known == 1


def test_rows_with_test_images_in_their_pool_are_marked(experiment, outputs, tmp_path, monkeypatch):
    monkeypatch.setattr("rayreid.pipeline.summary.leaked_images", lambda pool, target: 4)
    finish(plan(rows(experiment)["random, half · seed 0"], outputs), **RECORDED)
    enter(experiment, str(tmp_path / "ledger.csv"))
    assert [line["test_images"] for line in lines_of(tmp_path / "ledger.csv")] == ["4"]


def test_older_artifacts_have_their_commit_from_mlflow(experiment, outputs, tmp_path, new_database):
    from rayreid.tracking.tracker import Tracker

    new_database(outputs)
    run = Tracker(outputs, "tiny").run("evaluate", {"git_sha": "0ldc0de"})
    run.finish()
    finish(plan(rows(experiment)["none · seed 0"], outputs), run=run.id)
    finish(plan(rows(experiment)["none · seed 2"], outputs), run="deleted")
    enter(experiment, str(tmp_path / "ledger.csv"), machine="mine")
    known, lost = lines_of(tmp_path / "ledger.csv")
    assert known["commit"] == "0ldc0de" and lost["commit"] == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", known["date"])
    assert known["machine"] == "CPU, 2 cores"


def test_neither_mlflow_nor_a_machine_is_needed(experiment, outputs, tmp_path):
    graph = plan(rows(experiment)["none · seed 0"], outputs)
    for role, facts in {"target": {"dataset": "synthetic"}, "model": {"seconds": 1}, "metrics": SCORES}.items():
        graph[role].path.mkdir(parents=True)
        graph[role].finish({"seconds": 1, "run": "r1", **facts})
    enter(experiment, str(tmp_path / "ledger.csv"), machine="mine")
    (line,) = lines_of(tmp_path / "ledger.csv")
    assert (line["commit"], line["machine"], line["mAP"]) == ("", "mine", "0.2500")


def test_a_ledger_with_other_columns_is_refused_and_left_alone(experiment, tmp_path):
    path = tmp_path / "ledger.csv"
    path.write_text("experiment,row,mood\n")
    with pytest.raises(UserError, match=r"ledger.csv: its columns are not those .*'\w+' is in only one"):
        enter(experiment, str(path))
    path.write_text(",".join(COLUMNS[::-1]) + "\n")
    with pytest.raises(UserError, match="their order differs"):
        enter(experiment, str(path))
    assert path.read_text() == ",".join(COLUMNS[::-1]) + "\n"


def test_a_sweep_and_another_kind_of_file_are_refused(experiment, tiny, tmp_path):
    with pytest.raises(UserError, match=r"--to ledger.txt: name it \*\.csv"):
        enter(experiment, "ledger.txt")
    with pytest.raises(UserError, match="is a sweep"):
        enter(load_experiment(tiny(sweep={"parameters": {"seed": [0, 1]}})), str(tmp_path / "ledger.csv"))


def test_the_columns_have_no_duplicates():
    assert len(set(COLUMNS)) == len(COLUMNS) and set(module._DIGITS) <= set(COLUMNS)
