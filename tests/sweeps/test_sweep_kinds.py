"""Sweeps that draw, search, end trials early, or lose their driver: on two CPUs, with two trials at a time."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import ray
from mlflow import MlflowClient

import swept
from rayreid.config.loading import load_experiment
from rayreid.reports.sweep_report import find
from rayreid.reports.trial_results import trials_of
from rayreid.storage.metrics_log import Journal
from rayreid.sweeps import known_trials
from rayreid.sweeps.sweep_runner import sweep
from tiny_experiment import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RATES = {"finetune.lr": {"loguniform": [1e-4, 1e-2]}}
ONE_CPU = {"workers": 1, "cpus_per_worker": 1, "gpu": False}


@pytest.fixture(scope="module")
def two_cpus(root, no_shared_ray):
    """A cluster that two trials fill, with nothing left over."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path), "RAYREID_ROOT": str(root)}},
    )
    yield
    ray.shutdown()


def runs(root, name: str) -> dict[str, list]:
    """The runs of an experiment's newest sweep, by level and by stage."""
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    found: dict[str, list] = {}
    for run in client.search_runs([client.get_experiment_by_name(name).experiment_id]):
        found.setdefault(run.data.tags.get("stage") or run.data.tags["level"], []).append(run)
    return found


def finished(made: dict[str, list]) -> dict[str, int]:
    """How many runs there are of each kind, all of which must have come to their end."""
    assert {run.info.status for found in made.values() for run in found} == {"FINISHED"}
    return {kind: len(found) for kind, found in made.items()}


def test_a_search_by_optuna_runs_its_trials_side_by_side_and_goes_on_where_it_was(
    tiny, root, two_cpus, tmp_path, monkeypatch
):
    space = {"search": "optuna", "parameters": RATES, "trials": 2}
    file = tiny(name="searched", pretrain="none", resources=ONE_CPU, sweep=space)
    rows = sweep(load_experiment(file))
    assert len({row.label for row in rows}) == 2
    assert sweep(load_experiment(file)) == rows
    assert finished(runs(root, "searched")) == {"sweep": 1, "experiment": 2, "ingest": 1, "finetune": 2, "evaluate": 2}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert sweep(load_experiment(file)) == rows
    assert finished(runs(tmp_path, "searched")) == {"sweep": 1, "experiment": 2}


@pytest.mark.thorough
def test_a_trial_below_the_median_is_ended_marked_and_not_begun_again(
    tiny, root, two_cpus, monkeypatch, capsys, tmp_path
):
    found_more = tuple(tmp_path / f"{number}.jsonl" for number in range(3))
    for path in found_more:
        Journal(path).append({"step": 1, "epoch": 2.0, "probe_mAP": 1.0})
    held_against = known_trials._rivals

    def rivals(experiment, plans):
        own = held_against(experiment, plans)
        return replace(own, journals=(*own.journals, *found_more))

    monkeypatch.setattr(known_trials, "_rivals", rivals)
    pretrain = {**TINY["pretrain"], "probe_every": 1}
    space = {"parameters": {"pretrain.epochs": [1, 2]}, "stop_below_median": 2}
    target = {
        "dataset": "synthetic",
        "options": {**TINY["target"]["options"], "identities": 9},
    }  # of no other test here
    changes = {"pretrain": pretrain, "target": target, "select": {"fraction": 1.0}, "resources": ONE_CPU}
    file = tiny(name="ended", sweep=space, **changes)
    rows = sweep(load_experiment(file))
    assert [row.label for row in rows] == ["pretrain.epochs=1"]
    told = " ".join(capsys.readouterr().out.split())
    assert "ended early pretrain.epochs=2: stopped after epoch 2" in told
    assert sweep(load_experiment(file)) == rows
    expected = {"sweep": 1, "experiment": 2, "ingest": 2, "pretrain": 2, "finetune": 1, "evaluate": 1}
    assert finished(runs(root, "ended")) == expected
    trials = {one.record.name: one for one in trials_of(find(str(file))[3])}
    assert trials["pretrain.epochs=2"].stopped and not trials["pretrain.epochs=1"].stopped


@pytest.mark.thorough
def test_a_sweep_whose_driver_was_killed_finishes_the_rest_and_repeats_nothing(tiny, tmp_path):
    root = tmp_path / "root"
    space = {"search": "random", "parameters": RATES, "trials": 3, "max_concurrent": 1}
    file = tiny(name="killed", pretrain="none", sweep=space)
    environment = {**os.environ, "RAYREID_ROOT": str(root)}
    command = [sys.executable, swept.__file__, str(file)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        until = time.monotonic() + 300
        while not list(root.glob("evaluate/*/artifact.json")):
            assert driver.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        tree = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        for one in tree:
            one.kill()
        psutil.wait_procs(tree, 20)
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/*/artifact.json")}
    assert len(list(root.glob("evaluate/*/artifact.json"))) < 3
    subprocess.run(command, env=environment, check=True, timeout=400, stdout=subprocess.DEVNULL)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    made = runs(root, "killed")
    assert finished(made) == {"sweep": 1, "experiment": 3, "ingest": 1, "finetune": 3, "evaluate": 3}
    assert all("mAP" in run.data.metrics for run in made["experiment"])
    (results,) = root.glob("experiments/*/results.json")
    assert len(json.loads(results.read_text())) == 3
