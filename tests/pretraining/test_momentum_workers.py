"""Two workers with half of the batch each do what one does with all of it: negatives, queues, batch norm."""

from unittest.mock import patch

import pytest
import torch

from gloo_workers import WORLD
from rayreid.models import resnet
from rayreid.models.backbones import Backbone, build_backbone
from rayreid.pretraining.moby import MoBY
from rayreid.pretraining.mocov2 import MoCoV2
from rayreid.pretraining.mocov3 import MoCoV3, patch_projection
from rayreid.pretraining.momentum import MomentumMethod, Rates
from rayreid.training.averaging import average_gradients
from rayreid.training.schedules import Constant, WarmupCosine
from small_resnet import SmallResNet

IMAGES, STEPS, QUEUE = 4, 3, 10  # the queue wraps around in the third step
KINDS = ("mocov3", "mocov3-lars", "mocov2", "moby")


def _vit() -> Backbone:
    return build_backbone("vit_tiny", "ics", (32, 16), depth=1, embed_dim=24, num_heads=2)


def _resnet() -> Backbone:
    with patch.object(resnet, "ResNet50", SmallResNet):
        return build_backbone("resnet50")


def _method(kind: str) -> MomentumMethod:
    torch.manual_seed(0)
    pair = [_resnet() if kind in ("mocov2", "mocov3-lars") else _vit() for _ in range(2)]
    heads = {"hidden_dim": 16, "out_dim": 8}
    momentum = WarmupCosine(0.9, 1.0, STEPS)
    if kind == "mocov3":
        frozen = patch_projection(pair[0], fresh=True)
        return MoCoV3(*pair, Rates("adamw", Constant(1e-3), 0.1, momentum), **heads, frozen=frozen).double()
    if kind == "mocov3-lars":
        return MoCoV3(*pair, Rates("lars", Constant(1.0), 1e-2, momentum), **heads).double()
    if kind == "mocov2":
        return MoCoV2(*pair, Rates("sgd", Constant(0.1), 1e-4, Constant(0.9)), **heads, queue=QUEUE).double()
    return MoBY(*pair, Rates("adamw", Constant(1e-3), 0.05, momentum, clip=0.1), **heads, queue=QUEUE).double()


def _train(kind: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    method = _method(kind)
    optimizer = method.build_optimizer()
    share = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    for step in range(STEPS):
        views = torch.randn((2, IMAGES, 3, 32, 16), dtype=torch.float64)[:, share].flatten(0, 1)
        method.set_schedules(optimizer, step)
        method.losses([views])["loss"].backward()
        average_gradients(method.parameters())
        method.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        method.after_update(step)
    return method.state_dict()


def _worker(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    return {kind: _train(kind, rank, WORLD) for kind in KINDS}


@pytest.fixture(scope="module")
def states(gloo):
    workers = gloo(_worker)
    return {kind: [states[kind] for states in workers] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_equal_one(states, kind):
    alone = _train(kind, 0, 1)
    start = _method(kind).state_dict()
    assert not torch.equal(alone["base.projector.0.weight"], start["base.projector.0.weight"])
    for name, expected in alone.items():
        # A shift before the projector's batch norm has a gradient of 0: AdamW makes 1e-9 of its rounding
        torch.testing.assert_close(states[kind][0][name], expected, rtol=1e-7, atol=1e-8, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_stay_equal(states, kind):
    for name, value in states[kind][0].items():
        assert torch.equal(states[kind][1][name], value), name
