import logging

import pytest
import torch

from rayreid import devices
from rayreid.devices import current, is_out_of_memory, missing_for_code, runs_triton, tf32

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def host(monkeypatch):
    """A host with a GPU of some capability, and with a C compiler or without."""

    def host(capability: tuple[int, int], compiler: bool) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}" if compiler else None)

    runs_triton.cache_clear()
    yield host
    runs_triton.cache_clear()


@pytest.mark.parametrize(
    ("capability", "compiler", "missing"),
    [((9, 0), True, ""), ((9, 0), False, "a C compiler (gcc or clang)"), ((6, 1), True, "compute capability 7.0")],
)
def test_a_gpu_without_triton_is_told_once(host, caplog, capability, compiler, missing):
    host(capability, compiler)
    with caplog.at_level(logging.WARNING, "rayreid"):
        assert [runs_triton(GPU), runs_triton(GPU)] == [not missing] * 2
    assert missing in missing_for_code(GPU)
    assert len(caplog.records) == bool(missing) and missing in caplog.text


def test_a_cpu_runs_no_triton(caplog):
    assert not runs_triton(CPU) and not caplog.records


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("tried to allocate 9 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_gpu_out_of_memory_is_recognised_whoever_says_it(error, is_one):
    assert is_out_of_memory(error) == is_one


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_allowed_or_not_until_the_end_of_the_block(allowed):
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = not allowed
    try:
        with tf32(allowed):
            assert torch.backends.cuda.matmul.allow_tf32 == allowed
        assert torch.backends.cuda.matmul.allow_tf32 != allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_a_cpu_needs_not_be_made_the_current_device():
    with current(CPU):
        assert torch.zeros(1).device == CPU
