"""The order in which rows with several seeds are run; without Ray or MLflow."""

import contextlib
import io

import pytest
from rich.console import Console

from rayreid.config.loading import load_experiment, row_labels, rows
from rayreid.console import Screen
from rayreid.pipeline import experiment_runner
from rayreid.pipeline.experiment_runner import Session
from rayreid.pipeline.graph import plan
from recorded_run import RecordedRun

ROWS = [{"label": "short"}, {"label": "long", "finetune.epochs": 2}]
"""Two rows that share their weights at each seed."""


@pytest.fixture
def order(tmp_path, tiny, monkeypatch):
    """Run the rows of a file, with nothing made; gives the stages of shared artifacts and the rows in their order."""

    def run(**changes) -> list[str]:
        experiment = load_experiment(tiny(compare=ROWS, select={"strategy": "random"}, **changes))
        table, told = rows(experiment), []
        plans = {label: plan(row, tmp_path) for label, row in table.items()}
        monkeypatch.setattr(experiment_runner, "make_stores", lambda *of: None)
        monkeypatch.setattr(experiment_runner, "produce", lambda artifact, *of: told.append(artifact.stage))
        monkeypatch.setattr(experiment_runner, "experiment_run", lambda *of: contextlib.nullcontext(RecordedRun()))
        monkeypatch.setattr(experiment_runner, "run_row", lambda label, *of, row: told.append(f"{label} of {row}"))
        session = Session(tmp_path, None, Screen(Console(file=io.StringIO())))
        experiment_runner._run_rows(table, row_labels(experiment), plans, session, RecordedRun())
        return [one for one in told if one != "ingest"]

    return run


def test_a_seed_is_finished_before_the_next_one_begins(order):
    assert order(seeds=[0, 3]) == [
        *("select", "pretrain", "short · seed 0 of short", "long · seed 0 of long"),
        *("select", "pretrain", "short · seed 3 of short", "long · seed 3 of long"),
    ]


def test_without_seeds_what_rows_share_is_made_first(order):
    assert order() == ["select", "pretrain", "short of short", "long of long"]
