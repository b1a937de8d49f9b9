import os

import pytest
import torch

from rayreid.execution import machine
from rayreid.execution.machine import machine_name

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
