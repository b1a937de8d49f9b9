"""On a machine that others use, too: a command uses its own Ray, with the GPUs and CPUs that it may use.

Each test asks a process of its own what its Ray has.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from job_head import started

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ASK = """
import json, os
import ray
from rayreid.config import Resources
from rayreid.execution.connection import connect
from rayreid.execution.resources import training_share

with connect():
    @ray.remote(num_gpus=1, num_cpus=0)
    class Holder:
        def held(self):
            return os.environ["CUDA_VISIBLE_DEVICES"]

    has = ray.cluster_resources()
    holders = [Holder.remote() for _ in range(int(has.get("GPU", 0)))]
    print(json.dumps({
        "address": ray.get_runtime_context().gcs_address,
        "nodes": len(ray.nodes()),
        "CPU": has["CPU"],
        "workers": training_share(Resources()).workers,
        "GPU": sorted(ray.get([holder.held.remote() for holder in holders])),
        "session": ray._private.worker._global_node.get_session_dir_path(),
    }))
"""
GPUS = """
import ray._private.thirdparty.pynvml as nvml

nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
nvml.nvmlDeviceGetCount = lambda: 4
nvml.nvmlDeviceGetHandleByIndex = lambda number: number
nvml.nvmlDeviceGetName = lambda handle: "NVIDIA H100"
"""
"""A machine of four GPUs, as NVIDIA's library tells Ray."""


def ask(folder: Path, before: str = "", **environment: str) -> dict:
    """What the Ray of a command has; `before` runs before it."""
    left_out = ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "CUDA_VISIBLE_DEVICES", "SLURM_CPUS_ON_NODE")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [sys.executable, "-c", before + ASK],
        cwd=folder,
        env={**inherited, "RAYREID_ROOT": str(folder / "outputs"), **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_no_other_ray_is_joined_neither_one_s_own_nor_another_user_s(tmp_path):
    """The user's own was started by `ray start`; a file left in Ray's default folder names that of somebody else."""
    left = tmp_path / "temporary/ray"
    left.mkdir(parents=True)
    (left / "ray_current_cluster").write_text("10.255.255.1:6379")
    left.chmod(0o555)
    with started(tmp_path / "others") as other:
        other.wait_until_up()
        asked = ask(tmp_path, TMPDIR=str(left.parent), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a user's own")
    assert asked["nodes"] == 1 and asked["address"].startswith("127.0.0.1:")
    assert str(other.session.parent) not in asked["session"]
    assert [path.name for path in left.iterdir()] == ["ray_current_cluster"]


def test_all_gpus_are_used_and_a_long_folder_for_temporary_files_is_no_obstacle(tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    asked = ask(tmp_path, GPUS, TMPDIR=str(long))
    assert asked["GPU"] == ["0", "1", "2", "3"] and asked["workers"] == 4
    assert asked["session"].startswith("/tmp/rr-") and not Path(asked["session"]).parents[1].exists()


@pytest.mark.parametrize(("visible", "used"), [("1,3", ["1", "3"]), pytest.param("", [], marks=pytest.mark.thorough)])
def test_a_command_that_is_confined_to_some_gpus_and_cpus_uses_these(tmp_path, visible, used):
    """It leaves nothing behind."""
    confine = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    asked = ask(tmp_path, confine + GPUS, CUDA_VISIBLE_DEVICES=visible)
    assert asked["GPU"] == used and asked["workers"] == max(1, len(used))
    assert asked["CPU"] == 1
    assert not Path(asked["session"]).parents[1].exists()
