"""On a cluster that asks for a token: who has none is refused, the doctor looks, a stopped training goes on."""

import json
import secrets
import time

import pytest
import yaml
from mlflow import MlflowClient

from job_head import checkout, started
from killed import newest_step, wait_for_step
from tiny_experiment import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]
EPOCHS, STEPS_PER_EPOCH = 15, 30
LOGGED = list(range(9, EPOCHS * STEPS_PER_EPOCH, 10))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with started(tmp_path_factory.mktemp("outputs"), RAY_JOB_STOP_WAIT_TIME_S="30", **token) as head:
        head.wait_until_up()
        yield head


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The tiny experiment, in steps enough to be stopped among, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("experiment")
    pretrain = {**TINY["pretrain"], "epochs": EPOCHS, "batch_size": 4, "checkpoint_minutes": 1e-6, "probe_every": 0}
    resources = {"workers": 1, "cpus_per_worker": 1, "gpu": False}
    experiment = {**TINY, "pretrain": pretrain, "resources": resources, "select": {"fraction": 1.0}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment))
    return checkout(folder / "tree", folder / "tiny.yaml")


@pytest.mark.parametrize("token", ["", secrets.token_hex(32)], ids=["none", "another"])
def test_who_does_not_have_the_token_is_refused(head, tree, token):
    mode = {"RAY_AUTH_MODE": "token"} if token else {"RAY_AUTH_MODE": "disabled"}
    refused = head.ask(tree, "list", RAY_AUTH_TOKEN=token, **mode)
    assert refused.returncode != 0
    assert "authenti" in (refused.stdout + refused.stderr).lower()
    submitted = head.ask(tree, "submit", "--", "true", RAY_AUTH_TOKEN=token, **mode)
    assert submitted.returncode != 0
    assert head.ask(tree, "list").returncode == 0


def test_the_doctor_looks_at_the_job_s_own_cluster(head, tree):
    done = head.submit(tree, "jobs/doctor.py")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "the cluster of this job: 2 CPUs" in done.stdout and "all is well" in done.stdout
    assert "✗" not in done.stdout


@pytest.mark.thorough  # Ctrl-C in a terminal and jobs that end are tested apart
def test_a_training_that_is_stopped_says_so_and_goes_on_when_it_is_submitted_again(head, tree):
    begun = head.submit(tree, "jobs/pretrain.py", "tiny.yaml", options=("--no-wait", "--submission-id=first"))
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for_step(head.root, 2 * STEPS_PER_EPOCH)
    stopped = head.ask(tree, "stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "was stopped" in head.ask(tree, "status", "first").stdout
    last = newest_step(head.root)
    assert 2 * STEPS_PER_EPOCH <= last < EPOCHS * STEPS_PER_EPOCH
    time.sleep(2)
    assert newest_step(head.root) == last  # nothing trains on
    assert list(head.root.glob("pretrain/*/lease.json")) == []
    assert statuses(head) == {"tiny": "KILLED", "ingest": "FINISHED", "pretrain": "KILLED"}

    again = head.submit(tree, "jobs/pretrain.py", "tiny.yaml")
    assert again.returncode == 0, again.stdout[-3000:]
    (artifact,) = head.root.glob("pretrain/*/artifact.json")
    assert json.loads(artifact.read_text())["facts"]["resumed"] is True
    rows = [json.loads(line) for line in artifact.with_name("metrics.jsonl").read_text().splitlines()]
    assert sorted({row["step"] for row in rows}) == LOGGED
    assert statuses(head) == {"tiny": "FINISHED", "ingest": "FINISHED", "pretrain": "FINISHED"}
    client = MlflowClient(f"sqlite:///{head.root}/mlflow.db")
    run = json.loads(artifact.read_text())["facts"]["run"]
    assert [entry.step for entry in client.get_metric_history(run, "loss")] == LOGGED


def statuses(head) -> dict[str, str]:
    """Of all runs of the experiment, by name; only the ingests of pool and target have the same."""
    client = MlflowClient(f"sqlite:///{head.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    found = {run.info.run_name: run.info.status for run in runs}
    assert len(found) == len(runs) - 1
    return found
