"""MoCo v2, MoCo v3 and MoBY as the loop trains them, killed within an epoch: queue and momentum encoder come back."""

from collections.abc import Callable, Iterator

import pytest
import torch

from rayreid.models.backbones import build_backbone
from rayreid.pretraining.moby import MoBY
from rayreid.pretraining.mocov2 import MoCoV2
from rayreid.pretraining.mocov3 import MoCoV3, patch_projection
from rayreid.pretraining.momentum import MomentumMethod, Rates
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.loop import Batch, LoopSettings, train
from rayreid.training.schedules import WarmupCosine

EPOCHS, STEPS_PER_EPOCH, ACCUMULATE, IMAGES, QUEUE = 2, 3, 2, 4, 20
STEPS = EPOCHS * STEPS_PER_EPOCH
SETTINGS = LoopSettings(STEPS_PER_EPOCH, EPOCHS, ACCUMULATE, "fp32", log_every=1, checkpoint_seconds=-1.0)


class KilledError(Exception):
    pass


def method_of(kind: str, init: int) -> MomentumMethod:
    torch.manual_seed(init)
    pair = [
        build_backbone("vit_tiny", "ics", (32, 16), depth=2, drop_path=drop, embed_dim=24, num_heads=2)
        for drop in (0.5, 0.0)
    ]
    optimizer = {"moby": "adamw", "mocov2": "sgd", "mocov3": "lars"}[kind]
    rates = Rates(optimizer, WarmupCosine(1e-2, 0.0, STEPS, 1), 0.01, WarmupCosine(0.5, 1.0, STEPS))
    heads = {"hidden_dim": 16, "out_dim": 8}
    if kind == "mocov3":
        return MoCoV3(*pair, rates, **heads, frozen=patch_projection(pair[0], fresh=True))
    return {"mocov2": MoCoV2, "moby": MoBY}[kind](*pair, rates, **heads, queue=QUEUE)


def batches(until: int | None = None) -> Callable[[int], Iterator[Batch]]:
    def start_at(start: int) -> Iterator[Batch]:
        for step in range(start, STEPS):
            if step == until:
                raise KilledError
            generator = torch.Generator().manual_seed(step)
            for _ in range(ACCUMULATE):
                yield Batch(["x"] * IMAGES, [torch.randn(2 * IMAGES, 3, 32, 16, generator=generator)])

    return start_at


def run(kind: str, checkpoints: Checkpoints, until: int | None = None, init: int = 0) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    train(method_of(kind, init), batches(until), SETTINGS, torch.device("cpu"), checkpoints, rows.append)
    return [{name: row[name] for name in ("step", "loss", "accuracy", "feature_std", "grad_norm")} for row in rows]


def final(checkpoints: Checkpoints) -> dict:
    state = checkpoints.load(STEPS)
    return {name: state[name] for name in ("step", "method", "optimizer", "scaler")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted runs: their rows and their last states."""
    runs = {}
    for kind in ("mocov3", "mocov2", "moby"):
        checkpoints = Checkpoints(tmp_path_factory.mktemp(kind))
        runs[kind] = run(kind, checkpoints), final(checkpoints)
    return runs


@pytest.mark.parametrize("killed_at", [2, 3, 5])
@pytest.mark.parametrize("kind", ["mocov3", "mocov2", "moby"])
def test_the_resumed_run_is_the_uninterrupted_one(tmp_path, whole, kind, killed_at):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(KilledError):
        run(kind, checkpoints, until=killed_at)
    rows, expected = run(kind, checkpoints, init=1), whole[kind][0][killed_at:]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    torch.testing.assert_close(final(checkpoints), whole[kind][1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lost", ["queue1.keys", "queue2.position", "momentum.backbone.norm.weight"])
def test_every_part_of_the_state_is_needed_for_that(tmp_path, whole, lost):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(KilledError):
        run("moby", checkpoints, until=4)
    state = checkpoints.load(4)
    state["method"][lost].mul_(0)
    checkpoints.save(4, state)
    run("moby", checkpoints)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(final(checkpoints), whole["moby"][1], rtol=1e-6, atol=1e-6)
