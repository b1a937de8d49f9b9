import os

import pytest
import torch

from rayreid.execution import machine
from rayreid.execution.machine import machine_name, usable_cpus

CPU = torch.device("cpu")


def test_a_cpu_is_named_by_its_model_and_cores(tmp_path, monkeypatch):
    listed = tmp_path / "cpuinfo"
    listed.write_text(
        "processor\t: 0\nmodel name\t: A CPU @ 2:1 GHz\n\nprocessor\t: 1\nmodel name\t: A CPU @ 2:1 GHz\n"
    )
    monkeypatch.setattr(machine, "_CPU_INFO", listed)
    assert machine_name(CPU) == f"A CPU @ 2:1 GHz, {os.cpu_count()} cores"


@pytest.mark.parametrize("text", [None, "processor: 0\nBogoMIPS: 50\n"])
def test_a_cpu_without_a_name_is_named_by_its_architecture(tmp_path, monkeypatch, text):
    listed = tmp_path / "cpuinfo"
    if text is not None:
        listed.write_text(text)
    monkeypatch.setattr(machine, "_CPU_INFO", listed)
    monkeypatch.setattr("platform.machine", lambda: "sparc")
    assert machine_name(CPU) == f"sparc, {os.cpu_count()} cores"


def test_a_gpu_has_its_own_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert machine_name(torch.device("cuda", 1)) == "GPU 1"


@pytest.mark.parametrize(
    ("confined", "allotted", "usable"),
    [
        (8, None, None),
        (3, None, 3),
        (8, "4", 4),  # Slurm without confinement
        (3, "4", 3),
        (8, "8", None),
        (8, "", None),
        (8, "0", None),
        (8, "2(x2)", None),
    ],
)
def test_fewer_cpus_than_the_machine_has_are_counted(monkeypatch, confined, allotted, usable):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(confined)))
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    if allotted is not None:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", allotted)
    assert usable_cpus() == usable
