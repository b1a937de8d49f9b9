"""The steps of MoCo v2, MoCo v3 and MoBY compiled: the eager step's numbers, and one version whatever the rates are."""

from functools import partial
from unittest.mock import patch

import pytest
import torch

from rayreid.models import resnet
from rayreid.models.backbones import build_backbone
from rayreid.pretraining.moby import MoBY
from rayreid.pretraining.mocov2 import MoCoV2
from rayreid.pretraining.mocov3 import MoCoV3, patch_projection
from rayreid.pretraining.momentum import MomentumMethod, Rates
from rayreid.training import loop
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.compilation import compiled
from rayreid.training.loop import Batch, LoopSettings, train
from rayreid.training.schedules import Constant, WarmupCosine
from small_resnet import SmallResNet

CPU = torch.device("cpu")
KINDS = ("mocov3", "mocov2", "moby")
STEPS = 3


def build(kind: str, drop_path: float = 0.0, seed: int = 0) -> MomentumMethod:
    torch.manual_seed(seed)
    heads = {"hidden_dim": 16, "out_dim": 8}
    momentum = WarmupCosine(0.9, 1.0, STEPS)
    lr = WarmupCosine(1e-2, 0.0, STEPS, 1)
    if kind == "mocov2":
        with patch.object(resnet, "ResNet50", SmallResNet):
            pair = [build_backbone("resnet50") for _ in range(2)]
        return MoCoV2(*pair, Rates("sgd", lr, 1e-4, Constant(0.9)), **heads, queue=10)
    sizes = {"depth": 3, "embed_dim": 24, "num_heads": 2}
    pair = [build_backbone("vit_tiny", "patchify", (32, 16), drop_path=rate, **sizes) for rate in (drop_path, 0.0)]
    if kind == "mocov3":
        frozen = patch_projection(pair[0], fresh=True)
        return MoCoV3(*pair, Rates("adamw", lr, 0.1, momentum), **heads, frozen=frozen)
    return MoBY(*pair, Rates("adamw", lr, 0.05, momentum, clip=0.1), **heads, queue=10)


def batches(device: torch.device, start: int):
    step = start
    while True:
        generator = torch.Generator().manual_seed(step)
        yield Batch([str(step)], [torch.randn(8, 3, 32, 16, generator=generator).to(device)])
        step += 1


def losses(kind: str, compile: bool, drop_path: float = 0.0, until: int = STEPS) -> list[float]:
    """Of a run whose rates are others in every step."""
    return run(build(kind, drop_path), compile, until=until)


def run(
    method: MomentumMethod,
    compile: bool,
    checkpoints: Checkpoints | None = None,
    until: int = STEPS,
    device: torch.device = CPU,
) -> list[float]:
    rows: list[dict[str, float]] = []
    settings = LoopSettings(until, 1, log_every=1, compile=compile, checkpoint_seconds=-1.0)
    with patch.object(loop, "compiled", partial(compiled, backend="aot_eager")):
        train(method.to(device).train(), partial(batches, device), settings, device, checkpoints, rows.append)
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_eager_step_and_compiles_once(kind):
    eager = losses(kind, compile=False)
    losses(kind, compile=True, until=1)
    with torch.compiler.set_stance("fail_on_recompile"):
        again = losses(kind, compile=True)
    assert again == pytest.approx(eager, rel=1e-4)
    assert len(set(eager)) == STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_drop_path_is_that_of_the_eager_step(kind):
    assert losses(kind, compile=True, drop_path=0.5) == pytest.approx(losses(kind, False, 0.5), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_resumed_is_compiled(kind, tmp_path):
    whole = build(kind, 0.3)
    expected = run(whole, compile=True)
    checkpoints = Checkpoints(tmp_path)
    run(build(kind, 0.3), True, checkpoints, until=2)
    resumed = build(kind, 0.3, seed=1)
    assert run(resumed, True, checkpoints) == expected[2:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_gives_the_cpu_s_numbers(kind, compile):
    there = run(build(kind), compile, device=torch.device("cuda"))
    assert there == pytest.approx(losses(kind, compile=False), rel=1e-3)
