"""Supervised steps and those of cluster contrast compiled: the eager step's numbers, compiled once."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from rayreid.models.backbones import build_backbone
from rayreid.reid.cluster_contrast import ClusterContrast
from rayreid.reid.supervised import SupervisedReID
from rayreid.training import loop
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.compilation import compiled
from rayreid.training.loop import Batch, LoopSettings, train

CPU = torch.device("cpu")
STEPS = 3
IMAGES = 8


def _backbone(drop_path: float) -> nn.Module:
    sizes = {"depth": 3, "embed_dim": 24, "num_heads": 2}
    return build_backbone("vit_tiny", "patchify", (32, 16), drop_path=drop_path, **sizes)


def _supervised(drop_path: float) -> SupervisedReID:
    return SupervisedReID(_backbone(drop_path), 4, epochs=STEPS, warmup_epochs=1, lr=0.1)


def _cluster_contrast(drop_path: float) -> ClusterContrast:
    method = ClusterContrast(_backbone(drop_path), steps_per_epoch=1, lr=0.1, decay_every=1)
    method.remember(nn.functional.normalize(torch.randn(4, 24), dim=1))
    return method


METHODS = (_supervised, _cluster_contrast)


def batches(device: torch.device, start: int):
    step = start
    while True:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(IMAGES, 3, 32, 16, generator=generator)
        yield Batch([str(step)], (images.to(device), torch.arange(IMAGES, device=device) % 4))
        step += 1


def run(
    method: nn.Module,
    compile: bool,
    checkpoints: Checkpoints | None = None,
    until: int = STEPS,
    device: torch.device = CPU,
    backend: Any = "aot_eager",
) -> list[float]:
    rows: list[dict[str, float]] = []
    settings = LoopSettings(1, until, log_every=1, compile=compile)
    with patch.object(loop, "compiled", partial(compiled, backend=backend)):
        train(method.to(device).train(), partial(batches, device), settings, device, checkpoints, rows.append)
    return [row["loss"] for row in rows]


def built(build: Callable[[float], nn.Module], drop_path: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    return build(drop_path)


@pytest.mark.parametrize("build", METHODS)
def test_it_is_the_eager_step_and_compiles_once(build):
    eager = run(built(build), compile=False)
    run(built(build), compile=True, until=1)
    with torch.compiler.set_stance("fail_on_recompile"):
        again = run(built(build), compile=True)
    assert again == pytest.approx(eager, rel=1e-4)
    assert len(set(eager)) == STEPS


@pytest.mark.parametrize(
    ("build", "operations"), [(_supervised, {"batch_norm", "linear"}), (_cluster_contrast, {"batch_norm"})]
)
def test_the_heads_are_compiled_too(build, operations):
    found: set[str] = set()

    def watched(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        names = {node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"}
        if len(names) < 4:  # a block has more operations than a head
            found.update(names)
        return graph.forward

    torch._dynamo.reset()
    run(built(build), compile=True, until=1, backend=watched)
    assert operations <= found


@pytest.mark.parametrize("build", METHODS)
def test_compiled_and_resumed_is_compiled(build, tmp_path):
    whole = built(build)
    expected = run(whole, compile=True)
    checkpoints = Checkpoints(tmp_path)
    run(built(build), True, checkpoints, until=2)
    resumed = built(build)
    assert run(resumed, True, checkpoints) == expected[2:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.gpu
@pytest.mark.parametrize("build", METHODS)
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_gives_the_cpu_s_numbers(build, compile):
    here = run(built(build, drop_path=0.0), compile=False)
    assert run(built(build, drop_path=0.0), compile, device=torch.device("cuda")) == pytest.approx(here, rel=1e-3)
