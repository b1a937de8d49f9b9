"""A process of its own that trains the tiny experiment: what the tests of interruptions kill.

It pre-trains, or fine-tunes where the file says `pretrain: none`. Run as `python killed.py FILE [STEP]`; with a step on
a test cluster of three nodes, one of which is lost with the worker on it when the checkpoint of that step is there.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from rayreid.config.loading import load_experiment
from rayreid.paths import output_root
from rayreid.pipeline.experiment_runner import run_stage


def newest_step(root: Path) -> int:
    """Optimizer steps done in the newest checkpoint that a run under this root has sealed."""
    return max((int(path.stem) for path in root.glob("*/*/checkpoints/*.json")), default=0)


def wait_for_step(root: Path, step: int, seconds: float = 240.0) -> None:
    """Wait until a checkpoint of `step` or later lies there."""
    until = time.monotonic() + seconds
    while newest_step(root) < step:
        assert time.monotonic() < until, f"no checkpoint of step {step} under {root} after {seconds} s"
        time.sleep(0.02)


def workers_on(node: Any) -> list[psutil.Process]:
    """The processes that a node of a test cluster runs tasks and actors in."""
    (raylet,) = node.all_processes["raylet"]
    return psutil.Process(raylet.process.pid).children(recursive=True)


def _on_nodes(file: str, lost_at: int) -> int:
    """On a head and two more nodes of a CPU each; the status of the driver, which is another process.

    A cluster's nodes must be started from the main thread, and the driver needs one, too.
    """
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "120"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    others = [cluster.add_node(num_cpus=1) for _ in range(2)]
    command = [sys.executable, __file__, file]
    with subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address}) as driver:
        try:
            wait_for_step(output_root(), lost_at)
            # Of two workers one at most is on the head.
            node = next(one for one in others if any("RayTrainWorker" in str(p.cmdline()) for p in workers_on(one)))
            cluster.remove_node(node, allow_graceful=False)
            print(f"node lost after step {newest_step(output_root())}", flush=True)
            return driver.wait()
        finally:
            driver.kill()
            cluster.shutdown()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(_on_nodes(sys.argv[1], int(sys.argv[2])))
    experiment = load_experiment(Path(sys.argv[1]))
    run_stage(experiment, "finetune" if experiment.pretrain.method == "none" else "pretrain")
