"""How long the start of a training takes on Ray, as this package starts Ray and as Ray starts by itself.

Here processes are forked, and those that nothing uses are left out; by itself, each process imports what it needs. A
training does nothing but import what a pre-training imports. Each measurement is a command of its own, which connects
to a Ray of its own and runs several trainings after one another. CPU time is that of all processes of the command and
its Ray.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from statistics import median
from time import perf_counter
from typing import Any

import psutil
from timing import Paired, in_turns, show_table

from rayreid.execution.standby import StandBy, stand_by

KINDS = ("forked", "plain")
TRAININGS = 3


def train() -> None:
    """Import what a worker of a pre-training imports."""
    import rayreid.stages.pretrain  # noqa: F401


def measure(forked: bool, folder: str) -> dict[str, Any]:
    """Return the seconds and CPU seconds of a command, of its first training, and the medians of the later ones."""
    used_before, started = _cpu_seconds(), perf_counter()
    if forked:
        stand_by()
    import ray.train

    import rayreid.pipeline.experiment_runner  # noqa: F401 - what a command imports
    from rayreid.execution import connection
    from rayreid.execution.ray_trainer import Trainer

    if not forked:
        connection._forked = lambda folder: {}
        connection.lean_node = lambda worker_setup: contextlib.nullcontext()
    seconds, used = [], []
    with connection.connect():
        for _ in range(TRAININGS):
            before, began = _cpu_seconds(), perf_counter()
            Trainer(
                train,
                scaling_config=ray.train.ScalingConfig(num_workers=1),
                run_config=ray.train.RunConfig(storage_path=folder),
            ).fit()
            seconds.append(perf_counter() - began)
            used.append(_cpu_seconds() - before)
    return {
        "command of three": perf_counter() - started,
        "CPU time of it": _cpu_seconds() - used_before,
        "first of a command": seconds[0],
        "CPU time of the first": used[0],
        "a later one": median(seconds[1:]),
        "CPU time of a later one": median(used[1:]),
    }


def _cpu_seconds() -> float:
    """Return the CPU time that this machine has spent on processes, which is this command's if nothing else runs."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def main() -> None:
    """Print the times of both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="commands of each kind")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        os.environ.pop("RAY_ADDRESS", None)
        copy = None
        try:
            print(json.dumps(measure(options.one == KINDS[0], os.environ["RAYREID_ROOT"])))
        except StandBy as raised:
            copy = raised
        if copy is not None:
            copy.serve()
        return
    found: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for repeat in range(options.repeats):
        for which in in_turns(repeat):
            command = [sys.executable, __file__, "--one", KINDS[which]]
            with tempfile.TemporaryDirectory() as folder:
                environment = {**os.environ, "RAYREID_ROOT": folder}
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found[which].append(json.loads(done.stdout.splitlines()[-1]))
    rows = [
        Paired(*([one[name] for one in some] for some in found)).row(name, "s", lambda seconds: seconds)
        for name in found[0][0]
    ]
    show_table("start of a training: as here, and as Ray starts by itself", rows, ["ray", "torch", "timm"])


if __name__ == "__main__":
    main()
