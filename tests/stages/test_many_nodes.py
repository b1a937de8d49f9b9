"""A sweep on three nodes, one of which is lost while its trial trains: every trial has its result all the same."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster
from tiny_experiment import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RATES = [1e-3, 2e-3]
EPOCHS = 12


@pytest.fixture
def file(tmp_path) -> Path:
    """Two trials of one worker each, that train for long enough to be disturbed."""
    finetune = {**TINY["finetune"], "epochs": EPOCHS, "checkpoint_minutes": 1e-6}
    resources = {"workers": 1, "cpus_per_worker": 1, "gpu": False}
    sweep = {"parameters": {"finetune.lr": RATES}}
    path = tmp_path / "tiny.yaml"
    changes = {"finetune": finetune, "resources": resources, "pretrain": "none", "sweep": sweep}
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def checkpoints(root: Path) -> list[Path]:
    """The folders of trainings that have one."""
    return sorted({path.parents[1] for path in root.glob("finetune/*/checkpoints/*.json")})


def test_a_sweep_goes_through_the_loss_of_a_node(file, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    root = tmp_path / "outputs"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RAYREID_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    log = tmp_path / "log.txt"
    command = [sys.executable, "-m", "rayreid.cli", "sweep", str(file)]
    try:
        with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as driver:
            until = time.monotonic() + 240
            while len(checkpoints(root)) < len(RATES):
                assert time.monotonic() < until and driver.poll() is None, log.read_text()[-3000:]
                time.sleep(0.05)
            cluster.remove_node(nodes[0], allow_graceful=False)
            assert driver.wait(300) == 0, log.read_text()[-3000:]
    finally:
        cluster.shutdown()
    made = [json.loads(path.read_text()) for path in root.glob("finetune/*/artifact.json")]
    assert sorted(one["recipe"]["fields"]["finetune"]["lr"] for one in made) == RATES
    (results,) = root.glob("experiments/tiny-*/results.json")
    rows = {row["label"]: row for row in json.loads(results.read_text())}
    assert set(rows) == {f"finetune.lr={rate}" for rate in RATES} and all("mAP" in row for row in rows.values())
    assert "failed" not in log.read_text()
