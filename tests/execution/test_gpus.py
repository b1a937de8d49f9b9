import pytest
import torch

from rayreid.errors import UserError
from rayreid.execution.gpus import assigned_device, check_alike, out_of_memory


def test_without_a_gpu_it_is_the_cpu_even_where_torch_sees_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert assigned_device(False) == torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update"),
        AssertionError("Torch not compiled with CUDA enabled"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_refused(monkeypatch, error):
    def fail(*shape, device):
        raise error

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(UserError) as caught:
        assigned_device(True)
    assert str(error).splitlines()[0] in str(caught.value) and "rayreid doctor" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_a_gpu_that_others_fill_is_told_as_such(monkeypatch, kind):
    def fail(*shape, device):
        raise kind("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(UserError, match=r"^the GPU that Ray assigned has no memory left .*nvidia-smi") as caught:
        assigned_device(True)
    assert "driver" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.gpu
def test_a_gpu_that_works_is_the_process_s_first():
    assert assigned_device(True) == torch.device("cuda", 0)


def test_a_step_that_is_too_large_says_what_helps():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 8 GiB.\nSee the manual")
    said = str(out_of_memory(error))
    assert "Tried to allocate 9 GiB" in said and "accumulate" in said and "\n" not in said


def test_equal_gpus_are_nothing_to_tell():
    assert check_alike(["A100", "A100"], ["bf16", "bf16"]) is None
    assert check_alike(["A100"], ["bf16"]) is None


def test_gpus_of_different_kinds_are_told_once():
    said = check_alike(["A100", "L4", "A100"], ["bf16"] * 3)
    assert said == "the workers' GPUs differ (2 A100, 1 L4): every step waits for the slowest"


def test_gpus_that_would_train_in_different_precisions_are_refused():
    with pytest.raises(UserError, match=r"bf16 on A100, fp16 on T4.*set precision to one of them"):
        check_alike(["A100", "T4"], ["bf16", "fp16"])
    assert check_alike(["A100", "T4"], ["fp16", "fp16"]) is not None
