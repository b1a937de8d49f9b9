"""Ctrl-C, wherever a command is: it ends soon with the status of that, its runs are KILLED, and it can go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from killed import newest_step
from tiny_experiment import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS_PER_EPOCH, EPOCHS = 30, 5
# Where the tests themselves run in a shell's background, Ctrl-C is ignored, and children inherit that.
RAYREID = """
import signal
from rayreid.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The tiny experiment, in steps enough to be interrupted among, with a checkpoint after every step."""
    pretrain = {**TINY["pretrain"], "epochs": EPOCHS, "batch_size": 4, "checkpoint_minutes": 1e-6, "probe_every": 0}
    resources = {"workers": 1, "cpus_per_worker": 1, "gpu": False}
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "pretrain": pretrain, "resources": resources}))
    return path


def interrupt(file: Path, root: Path, begun: Callable[[str], bool]) -> tuple[int, str]:
    """Press Ctrl-C in `rayreid score` as soon as `begun` of what it has said; its status and what it said from then."""
    log = root / "log.txt"
    environment = {**os.environ, "RAYREID_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    with (
        log.open("w") as said,
        subprocess.Popen(
            [sys.executable, "-c", RAYREID, "score", str(file)],
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is for the whole process group
        ) as process,
    ):
        until = time.monotonic() + 240
        while not begun(log.read_text()):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.05)
        before = len(log.read_text())
        os.killpg(process.pid, signal.SIGINT)
        try:
            status = process.wait(120)
        finally:
            process.kill()
    return status, log.read_text()[before:]


def states(root: Path) -> dict[str, str]:
    """The state of each stage's newest MLflow run."""
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()], order_by=["start_time ASC"])
    return {run.info.run_name: run.info.status for run in found}


def test_ctrl_c_ends_a_training_and_after_it_a_scoring(file, tmp_path):
    status, said = interrupt(file, tmp_path, lambda _: newest_step(tmp_path) >= STEPS_PER_EPOCH)
    assert status == 130, said
    assert said.index("rayreid: stopping") < said.index("interrupted; run the same command again to resume")
    assert "Traceback" not in said
    assert STEPS_PER_EPOCH <= newest_step(tmp_path) < STEPS_PER_EPOCH * EPOCHS
    assert states(tmp_path) == {"tiny": "KILLED", "ingest": "FINISHED", "pretrain": "KILLED"}

    status, said = interrupt(file, tmp_path, lambda said: "▸ score/" in said)
    assert status == 130 and "interrupted" in said and "Traceback" not in said, said
    done = {"ingest": "FINISHED", "pretrain": "FINISHED", "finetune": "FINISHED"}
    assert states(tmp_path) == {"tiny": "KILLED", **done, "score": "KILLED"}
    assert list(tmp_path.glob("*/*/lease.json")) == []
