"""A real command whose MLflow database is damaged, or whose driver is killed, in the middle of a training."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from killed import wait_for_step
from rayreid.storage.metrics_log import Journal
from rayreid.tracking.tracker import Tracker
from tiny_experiment import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DAMAGED_AT = 20


@pytest.fixture
def file(tmp_path) -> Path:
    """The tiny experiment, in steps enough to be disturbed, with a checkpoint after every step."""
    pretrain = {**TINY["pretrain"], "epochs": 3, "batch_size": 4, "checkpoint_minutes": 1e-6}
    resources = {"workers": 1, "cpus_per_worker": 1, "gpu": False}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "pretrain": pretrain, "resources": resources, "select": {"fraction": 1.0}}))
    return path


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "outputs"


def start(file: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "rayreid.cli", "pretrain", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def opened(root: Path) -> MlflowClient:
    """A client that opens the database anew; another command on the root."""
    SqlAlchemyStore._engine_map.clear()
    return Tracker(root, "another").client


def losses(client: MlflowClient, root: Path) -> tuple[str, list[int]]:
    """The state of the pre-training's run, and the steps of its losses."""
    [run] = client.search_runs(["1"], "tags.stage = 'pretrain'")
    return run.info.status, [one.step for one in client.get_metric_history(run.info.run_id, "loss")]


def steps(root: Path) -> list[int]:
    [path] = root.glob("pretrain/*/metrics.jsonl")
    return [row["step"] for row in Journal(path).history() if "loss" in row]


@pytest.mark.thorough
def test_damage_to_the_database_costs_no_training_and_no_metric(file, root, tmp_path):
    process = start(file)
    wait_for_step(root, DAMAGED_AT)
    shutil.copy(root / "mlflow.db", tmp_path / "good.db")
    with (root / "mlflow.db").open("r+b") as stream:
        stream.write(b"<html>not found</html>\n" * 50)
    began = time.monotonic()
    said, _ = process.communicate(timeout=300)
    lines = [line for line in said.splitlines() if line.strip()]
    assert process.returncode == 2, said
    assert time.monotonic() - began < 120 and "Traceback" not in said and len(lines) < 40, said
    assert lines[-1].startswith("rayreid: ") and "not in MLflow yet" in lines[-1] and "is damaged" in lines[-1]
    assert list(root.glob("pretrain/*/artifact.json"))

    shutil.move(tmp_path / "good.db", root / "mlflow.db")
    client = opened(root)
    assert losses(client, root) == ("FINISHED", steps(root))
    again = start(file)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert not list(root.glob("undelivered/*"))


def test_rows_left_by_a_killed_driver_are_delivered_by_whichever_command_is_next(file, root):
    process = start(file)
    wait_for_step(root, DAMAGED_AT)
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in tree:
        one.suspend()
    for one in tree:
        one.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(tree, 20)
    written = steps(root)
    assert losses(opened(root), root) == ("RUNNING", written) and not list(root.glob("undelivered/*"))

    again = start(file)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    state, delivered = losses(opened(root), root)
    assert state == "FINISHED" and delivered == steps(root) and len(delivered) > len(written)
