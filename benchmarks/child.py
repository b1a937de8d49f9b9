"""A measurement in a process of its own: its time, and its peak memory as growth above the imports."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

MIB = 2**20


def resident_mib() -> float:
    """Memory that this process holds now."""
    import psutil

    return psutil.Process().memory_info().rss / MIB


def peak_mib() -> float:
    """Greatest memory of this process so far.

    `ru_maxrss` would begin with that of the parent: a process inherits it from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def measure(prepare: Callable[[], Callable[[], dict[str, Any]]]) -> None:
    """In the child, after its imports: print the facts that the prepared work returns, with `seconds` and `mib`."""
    imported = resident_mib()
    work = prepare()
    began = perf_counter()
    facts = work()
    print(json.dumps({"seconds": perf_counter() - began, "mib": peak_mib() - imported, **facts}))


def run(script: str, kind: str, folder: Path, threads: int, *options: str) -> dict[str, Any]:
    """In the parent: start `script` with `--child kind folder` and return what it printed."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, script, "--child", kind, str(folder), *options]
    done = subprocess.run(command, env={**os.environ, **limits}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{kind}: its process ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
