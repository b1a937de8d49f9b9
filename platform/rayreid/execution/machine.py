"""The machine that computes: its name, as artifacts record it, and the CPUs that this process may use."""

import os
import platform
from pathlib import Path

import torch

_CPU_INFO = Path("/proc/cpuinfo")


def machine_name(device: torch.device) -> str:
    """Return the name of a GPU, or the model of the CPU with the number of its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {os.cpu_count()} cores"


def usable_cpus() -> int | None:
    """Return how many CPUs this process may use, if they are fewer than the machine has; otherwise None.

    Ray counts the CPUs of the machine, or of a container. A process that `taskset` or a batch system confines to some
    of them would start as many processes as the whole machine has CPUs. Slurm says the number of CPUs, but confines
    processes to them only where the cluster is configured to do so.
    """
    there = os.cpu_count() or 1
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there  # only on Linux
    allotted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    usable = min(given, int(allotted)) if allotted.isdecimal() and int(allotted) else given
    return usable if usable < there else None


def _cpu_model() -> str:
    """Return the model from Linux's list of processors; elsewhere, or if it names none, the architecture."""
    text = _CPU_INFO.read_text(encoding="utf-8", errors="replace") if _CPU_INFO.exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    return named.get("model name") or platform.machine()
