"""A sweep: trials share what they can, a failing one ends nothing, and nothing runs twice."""

import json
import shutil
import subprocess
import threading

import pytest
from mlflow import MlflowClient

from rayreid.config.loading import load_experiment
from rayreid.errors import UserError
from rayreid.execution.connection import connect
from rayreid.pipeline.experiment_folder import folder_of
from rayreid.pipeline.experiment_runner import open_session
from rayreid.reports.model_registry import register_best
from rayreid.reports.sweep_report import report
from rayreid.storage.lease import here
from rayreid.sweeps.sweep_runner import alone, sweep
from tiny_experiment import TINY


def test_a_rule_that_would_look_at_nothing_is_refused(tiny, root):
    space = {"parameters": {"seed": [0, 1]}, "stop_below_median": 1}
    with pytest.raises(UserError, match=r"pretrain\.probe_every is 0; set it"):
        sweep(load_experiment(tiny(pretrain={**TINY["pretrain"], "probe_every": 0}, sweep=space)))
    assert not (root / "experiments").exists()


def test_a_second_command_waits_until_the_first_is_over(tiny, root, capsys):
    """A second Optuna search would take the first one's trials for those of a process that is gone."""
    experiment = load_experiment(tiny(sweep={"parameters": {"seed": [0, 1]}}))
    session = open_session(experiment)
    went_on = threading.Event()

    def second():
        with alone(session, experiment):
            went_on.set()

    with subprocess.Popen(["sleep", "60"]) as first:
        lease = folder_of(root, experiment) / "lease.json"
        lease.write_text(json.dumps({"token": "first", "host": here(), "pid": first.pid}))
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not went_on.wait(1)
        assert "waiting for another command that is running this sweep" in capsys.readouterr().out
        first.kill()
    waiting.join(20)
    assert went_on.is_set() and not lease.exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_runs_its_trials_and_tells_of_the_one_that_failed(tiny, root, no_shared_ray, capsys, monkeypatch):
    # Tune runs its trials in other folders than this one: a relative root must lead to the same place from there.
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("RAYREID_ROOT", root.name)
    # At this rate (the highest that is accepted) the model holds no numbers: only the trial itself finds that out.
    parameters = {"finetune.lr": [1e-3, 1e6]}
    proxy = {"pretrain": {"epochs": 1}}
    file = tiny(select={"strategy": "cfs", "fraction": 0.5}, proxy=proxy, sweep={"parameters": parameters})
    experiment = load_experiment(file)
    with connect():
        rows = sweep(experiment)
        again = sweep(experiment)
    assert [row.label for row in rows] == ["finetune.lr=0.001"]
    assert again == rows
    assert "failed" in capsys.readouterr().out
    # Both proxies, the scores and the subset are the trials' in common, as is the pre-training on it.
    expected = {"ingest": 2, "score": 1, "select": 1, "pretrain": 2, "finetune": 3, "evaluate": 1}
    counts = {stage: len(list((root / stage).iterdir())) for stage in expected}
    assert counts == expected

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    by_name = {run.info.run_name: run for run in found}
    top = by_name["tiny"]
    good, bad = by_name["finetune.lr=0.001"], by_name["finetune.lr=1000000.0"]
    assert good.data.tags["mlflow.parentRunId"] == bad.data.tags["mlflow.parentRunId"] == top.info.run_id
    assert good.info.status == "FINISHED" and "mAP" in good.data.metrics
    assert bad.info.status == "FAILED" and "diverged" in bad.data.tags["error"]
    once = [run for run in found if run.data.tags.get("stage") in ("ingest", "score", "select", "pretrain")]
    assert [run.data.tags["mlflow.parentRunId"] for run in once] == 6 * [top.info.run_id]
    assert good.data.tags["run.weights"] in {run.info.run_id for run in once}
    assert any(name.startswith("system/") for name in top.data.metrics)

    page = report(str(file)).read_text()
    assert "finetune.lr=1000000.0" in page and "diverged" in page
    assert register_best("tiny") == "models:/tiny/1"
    for kind in (*counts, "experiments", "reports"):
        shutil.rmtree(root / kind)
    assert report("tiny").read_text() == page
