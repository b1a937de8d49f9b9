import pytest
import torch

from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.training.compilation import resolve_compile

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_on_a_cpu_only_true_compiles():
    assert [resolve_compile(wanted, CPU) for wanted in ("auto", True, False)] == [False, True, False]


def test_on_a_gpu_auto_compiles(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert [resolve_compile(wanted, GPU) for wanted in ("auto", True, False)] == [True, True, False]


def test_an_old_gpu_does_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert not resolve_compile("auto", GPU)
    with pytest.raises(UserError, match=r"compile: true needs a GPU of compute capability 7\.0"):
        resolve_compile(True, GPU)


@pytest.mark.parametrize(("device", "what"), [(CPU, r"a C\+\+ compiler"), (GPU, "a C compiler")])
def test_without_a_compiler_nothing_does(monkeypatch, tmp_path, device, what):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not resolve_compile("auto", device)
    with pytest.raises(UserError, match=f"compile: true needs {what}.*; use compile: false"):
        resolve_compile(True, device)


@pytest.mark.parametrize("stem", ["patchify", "ics"])
def test_a_user_s_own_compilation_finds_one_graph(stem):
    network = build_backbone("vit_tiny", stem, (64, 32), 2).eval()
    images = torch.randn(2, 3, 64, 32)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), network(images))


def test_so_it_does_where_activations_are_computed_again():
    network = build_backbone("vit_tiny", "patchify", (64, 32), 2)
    network.set_grad_checkpointing()
    images = torch.randn(2, 3, 64, 32)
    expected = network(images)
    torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(images), expected)
