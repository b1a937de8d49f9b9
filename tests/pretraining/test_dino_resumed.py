"""DINO as the loop trains it, killed within an epoch: what a checkpoint must bring back, to the last bit of it."""

from collections.abc import Callable, Iterator

import pytest
import torch

from rayreid.models.backbones import build_backbone
from rayreid.pretraining.dino import DINO
from rayreid.pretraining.dino_schedules import DINOSchedules
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.loop import Batch, LoopSettings, train

EPOCHS, STEPS_PER_EPOCH, ACCUMULATE, IMAGES = 2, 4, 2, 4
SETTINGS = LoopSettings(STEPS_PER_EPOCH, EPOCHS, ACCUMULATE, "fp32", log_every=1, checkpoint_seconds=-1.0)


class KilledError(Exception):
    pass


def dino(init: int = 0) -> DINO:
    torch.manual_seed(init)
    student, teacher = (
        build_backbone("vit_tiny", "ics", (64, 32), depth=2, drop_path=drop, embed_dim=48, num_heads=3)
        for drop in (0.5, 0.0)
    )
    heads = {"out_dim": 64, "hidden_dim": 32, "bottleneck_dim": 16}
    schedules = DINOSchedules(EPOCHS, STEPS_PER_EPOCH, lr=1e-3, warmup_epochs=1, teacher_momentum=0.9)
    return DINO(student, teacher, schedules, centre_momentum=0.5, **heads)


def batches(until: int | None = None) -> Callable[[int], Iterator[Batch]]:
    def start_at(start: int) -> Iterator[Batch]:
        for step in range(start, EPOCHS * STEPS_PER_EPOCH):
            if step == until:
                raise KilledError
            generator = torch.Generator().manual_seed(step)
            for _ in range(ACCUMULATE):
                sizes = ((2 * IMAGES, 64, 32), (2 * IMAGES, 32, 16))
                crops = [torch.randn(n, 3, h, w, generator=generator) for n, h, w in sizes]
                yield Batch(["x"] * IMAGES, crops)

    return start_at


def run(checkpoints: Checkpoints, until: int | None = None, init: int = 0) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    train(dino(init), batches(until), SETTINGS, torch.device("cpu"), checkpoints, rows.append)
    return [{name: row[name] for name in ("step", "loss", "kl", "teacher_entropy", "grad_norm")} for row in rows]


def final(checkpoints: Checkpoints) -> dict:
    state = checkpoints.load(EPOCHS * STEPS_PER_EPOCH)
    return {name: state[name] for name in ("step", "method", "optimizer", "scaler")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run: its rows and its last state."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("whole"))
    return run(checkpoints), final(checkpoints)


@pytest.mark.parametrize("killed_at", [1, 3, 4, 6])
def test_the_resumed_run_is_the_uninterrupted_one(tmp_path, whole, killed_at):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(KilledError):
        run(checkpoints, until=killed_at)
    rows, expected = run(checkpoints, init=1), whole[0][killed_at:]
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    torch.testing.assert_close(final(checkpoints), whole[1], rtol=1e-6, atol=1e-6)


def test_every_part_of_the_state_is_needed_for_that(tmp_path, whole):
    losses = {
        "centre": lambda state: state["method"]["loss.centre"].zero_(),
        "teacher": lambda state: _overwrite(state["method"], "teacher.", "student."),
        "student": lambda state: _overwrite(state["method"], "student.", "teacher."),
        "head": lambda state: state["method"]["student.head.mlp.0.weight"].mul_(0.5),
        "optimizer": lambda state: state["optimizer"].update(state={}),
    }
    for lost, lose in losses.items():
        checkpoints = Checkpoints(tmp_path / lost)
        with pytest.raises(KilledError):
            run(checkpoints, until=6)
        state = checkpoints.load(6)
        lose(state)
        checkpoints.save(6, state)
        run(checkpoints)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(final(checkpoints), whole[1], rtol=1e-6, atol=1e-6)


def test_drop_path_draws_in_the_resumed_run_what_it_drew(tmp_path, whole, monkeypatch):
    """It is on: with another draw for the step after the restart the run is another."""
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(KilledError):
        run(checkpoints, until=6)
    monkeypatch.setattr("rayreid.training.loop._step_seed", lambda seed, step: 1)
    assert run(checkpoints)[0]["loss"] != pytest.approx(whole[0][6]["loss"], rel=1e-6)


def _overwrite(state: dict[str, torch.Tensor], prefix: str, source: str) -> None:
    for name in state:
        if name.startswith(prefix):
            state[name].copy_(state[source + name.removeprefix(prefix)])
