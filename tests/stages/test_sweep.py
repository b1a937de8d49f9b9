"""A sweep: trials share what they can, a failing one ends nothing, and nothing runs twice."""

import pytest
from mlflow import MlflowClient

from rayreid.cluster import connect
from rayreid.experiment_file import load_experiment
from rayreid.stages.sweep import sweep

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_a_sweep_runs_its_trials_and_tells_of_the_one_that_failed(tiny, root, capsys, monkeypatch):
    # Tune runs its trials in other folders than this one: a relative root must lead to the same place from there.
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("RAYREID_ROOT", root.name)
    # At this rate the loss is soon no number: only the trial itself finds that out.
    parameters = {"finetune.lr": [1e-3, 1e30]}
    experiment = load_experiment(tiny(pretrain="none", sweep={"parameters": parameters}))
    with connect():
        rows = sweep(experiment)
        again = sweep(experiment)
    assert [row.label for row in rows] == ["finetune.lr=0.001"]
    assert again == rows
    assert "failed" in capsys.readouterr().out
    assert len(list((root / "ingest").iterdir())) == 1
    assert len(list((root / "evaluate").iterdir())) == 1

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    by_name = {run.info.run_name: run for run in found}
    top = by_name["tiny"]
    good, bad = by_name["finetune.lr=0.001"], by_name["finetune.lr=1e+30"]
    assert good.data.tags["mlflow.parentRunId"] == bad.data.tags["mlflow.parentRunId"] == top.info.run_id
    assert good.info.status == "FINISHED" and "mAP" in good.data.metrics
    assert bad.info.status == "FAILED" and "loss" in bad.data.tags["error"]
    ingest = [run for run in found if run.data.tags.get("stage") == "ingest"]
    assert [run.data.tags["mlflow.parentRunId"] for run in ingest] == [top.info.run_id]
