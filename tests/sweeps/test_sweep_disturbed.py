"""A sweep whose trials are disturbed: by the loss of a node, and by `ray job stop`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from job_head import checkout, started
from killed import workers_on
from tiny_experiment import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.thorough]

RATES = [1e-3, 2e-3]
LABELS = {f"finetune.lr={rate}" for rate in RATES}


@pytest.fixture
def file(tmp_path) -> Path:
    """Two trials of one worker each, with a checkpoint after every step."""
    finetune = {**TINY["finetune"], "epochs": 20, "checkpoint_minutes": 1e-6}
    resources = {"workers": 1, "cpus_per_worker": 1, "gpu": False}
    sweep = {"parameters": {"finetune.lr": RATES}}
    changes = {"finetune": finetune, "resources": resources, "pretrain": "none", "sweep": sweep}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def wait_for_trainings(root: Path, goes_on) -> None:
    """Wait until every trial has a checkpoint."""
    until = time.monotonic() + 300
    while len({path.parent for path in root.glob("finetune/*/checkpoints/*.json")}) < len(RATES):
        assert time.monotonic() < until and goes_on()
        time.sleep(0.05)


def assert_whole(root: Path) -> None:
    """Every trial has its result, made once."""
    made = [json.loads(path.read_text()) for path in root.glob("finetune/*/artifact.json")]
    assert sorted(one["recipe"]["fields"]["finetune"]["lr"] for one in made) == RATES
    assert any(one["facts"]["resumed"] for one in made)
    (results,) = root.glob("experiments/tiny-*/results.json")
    rows = {row["label"]: row for row in json.loads(results.read_text())}
    assert rows.keys() == LABELS and all("mAP" in row for row in rows.values())
    assert set(statuses(root).values()) == {"FINISHED"}


def statuses(root: Path) -> dict[str, str]:
    """Of all runs, by name, or by stage and artifact; there is one of each."""
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    found = {run.data.tags.get("artifact", run.info.run_name): run.info.status for run in runs}
    assert len(found) == len(runs)
    return found


def test_trials_whose_node_is_lost_are_begun_again_on_another(file, tmp_path, monkeypatch):
    """On a head that runs no work, and two nodes; the one that is lost has both trials' own processes, or one's."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    root, log = tmp_path / "outputs", tmp_path / "log.txt"
    # A trial's own process takes a mebibyte of the memory that Ray counts.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "memory": 2**10})
    nodes = [cluster.add_node(num_cpus=2, memory=2**30) for _ in range(2)]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RAYREID_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "rayreid.cli", "sweep", str(file)]
    try:
        with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as driver:
            try:
                wait_for_trainings(root, lambda: driver.poll() is None)
                cluster.remove_node(max(nodes, key=trials_on), allow_graceful=False)
                assert driver.wait(300) == 0
            finally:
                driver.kill()
    except AssertionError as error:
        raise AssertionError(log.read_text()[-3000:]) from error
    finally:
        cluster.shutdown()
    told = log.read_text()
    assert "was lost with its process, and begins again" in told and "✗" not in told
    assert_whole(root)


def trials_on(node) -> int:
    """How many trials' own processes a node has."""
    return sum("ImplicitFunc" in str(process.cmdline()) for process in workers_on(node))


def test_a_sweep_that_is_stopped_leaves_nothing_running_and_goes_on_when_it_is_submitted_again(file, tmp_path):
    tree = checkout(tmp_path / "tree", file)
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_JOB_STOP_WAIT_TIME_S": "30", "OMP_NUM_THREADS": "1"}
    with started(tmp_path / "outputs", **settings) as head:
        head.wait_until_up()
        begun = head.submit(tree, "jobs/sweep.py", "tiny.yaml", options=("--no-wait", "--submission-id=first"))
        assert begun.returncode == 0, begun.stdout + begun.stderr
        wait_for_trainings(head.root, lambda: True)
        stopped = head.ask(tree, "stop", "first")
        assert "was stopped" in head.ask(tree, "status", "first").stdout, stopped.stdout + stopped.stderr
        said = statuses(head.root)
        assert {said[name] for name in ("tiny", *LABELS)} == {"KILLED"}
        trained = {status for name, status in said.items() if name.startswith("finetune/")}
        # On a busy machine one of the two may be finished before the stop arrives.
        assert {"KILLED"} <= trained <= {"KILLED", "FINISHED"} and "RUNNING" not in said.values()
        steps = sorted(head.root.glob("finetune/*/checkpoints/*.json"))
        time.sleep(3)
        assert sorted(head.root.glob("finetune/*/checkpoints/*.json")) == steps  # nothing trains on

        again = head.submit(tree, "jobs/sweep.py", "tiny.yaml")
        assert again.returncode == 0, again.stdout[-3000:]
        assert_whole(head.root)
