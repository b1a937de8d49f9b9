"""Gradients averaged while the backward pass goes on: the same means, sent in the same order by both workers."""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from test_loop import CPU, FEATURES, settings
from torch import Tensor, nn

from gloo_workers import WORLD
from rayreid.models.norms import SyncedBatchNorm
from rayreid.training import averaging, loop
from rayreid.training.averaging import Averaging
from rayreid.training.compilation import compilable, compiled
from rayreid.training.gradients import gradient_norms, norm_scalars
from rayreid.training.loop import Batch, train

IMAGES, STEPS = 8, 5
TRAINED_LATE, UNUSED = 2, 3


@compilable(breaks=True)
def _layers(layers: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = layers(x)
    return out


class Network(nn.Module):
    """Batch norm that waits for the other worker in its backward pass, too; a layer that is frozen at first, in two
    ways; one that is not used at first, and one that never is.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(FEATURES, 16), SyncedBatchNorm(16), nn.Linear(16, 16), nn.Tanh())
        self.last = nn.Linear(16, 1)
        self.late = nn.Linear(16, 1)
        self.never = nn.Linear(16, 1)
        self.frozen = nn.Linear(16, 16)
        self.step = 0

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def set_schedules(self, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
        self.step = step
        self.frozen.requires_grad_(step >= TRAINED_LATE)
        return {"lr": 0.1}

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, labels = batch
        hidden = self.frozen(_layers(self.layers, x))
        out = self.last(hidden) + (self.late(hidden) if self.step >= UNUSED else 0)
        return {"loss": (out.squeeze(1) - labels).square().mean()}

    def before_update(self, step: int) -> dict[str, Tensor]:
        if step == 0:  # as DINO freezes its last layer
            for parameter in self.last.parameters():
                parameter.grad = None
        return norm_scalars(gradient_norms(self.parameters()))

    def after_update(self, step: int) -> None: ...


def _batches(rank: int, world: int, parts: int):
    """The worker's share of each micro-batch's images."""

    def start_at(start: int):
        for step in range(start, STEPS):
            generator = torch.Generator().manual_seed(step)
            images, labels = (
                torch.randn(IMAGES, FEATURES, generator=generator),
                torch.randn(IMAGES, generator=generator),
            )
            for rows in torch.arange(IMAGES).chunk(parts):
                own = rows.chunk(world)[rank]
                yield Batch([str(row) for row in own.tolist()], (images[own], labels[own]))

    return start_at


def _train(rank: int, world: int, parts: int, compile: bool = False) -> dict[str, Tensor]:
    network = Network()
    ends = settings(steps_per_epoch=STEPS, epochs=1, accumulate=parts, compile=compile)

    def eagerly(enabled: bool) -> object:
        return compiled(enabled, "aot_eager")

    with patch.object(loop, "compiled", eagerly):
        train(network, _batches(rank, world, parts), ends, CPU)
    return network.state_dict()


def _sent(network: Network, step: int) -> tuple[list[int], int]:
    """Elements of the messages of a step, in order, and how many had been sent when the backward pass ended."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def recorded(tensor: Tensor, **options: object) -> object:
        sizes.append(tensor.numel())
        return all_reduce(tensor, **options)

    images = torch.randn(4, FEATURES)
    network.set_schedules(network.optimizer, step)
    loss = network.losses((images, torch.zeros(4)))["loss"]
    with patch.object(dist, "all_reduce", recorded):
        network.averaging.begin()
        loss.backward()
        early = len(sizes)
        network.averaging.finish()
    network.zero_grad()
    return sizes, early


def _thawed(rank: int) -> list[float]:
    """The gradients in two steps of a parameter that is frozen when the averaging is set up."""
    parameter = nn.Parameter(torch.zeros(1), requires_grad=False)
    averaging = Averaging([parameter])
    parameter.requires_grad_()
    seen = []
    for step in range(2):
        averaging.begin()
        (parameter * (step + 1) * (rank + 1)).sum().backward()
        averaging.finish()
        seen.append(parameter.grad.item())
        parameter.grad = None
    return seen


@patch.object(averaging, "BUCKET_BYTES", 256)  # nearly every parameter has a bucket of its own
def _worker(rank: int) -> dict[str, object]:
    results: dict[str, object] = {
        f"state {parts} {compile}": _train(rank, WORLD, parts, compile) for parts in (1, 2) for compile in (False, True)
    }
    network = Network()
    network.optimizer = network.build_optimizer()
    network.averaging = Averaging(network.parameters())
    results["sent"] = [_sent(network, step) for step in (0, 1, TRAINED_LATE, UNUSED, UNUSED + 1)]
    results["thawed"] = _thawed(rank)
    results["hooks"] = [parameter._post_accumulate_grad_hooks for parameter in network.parameters()]
    return results


@pytest.fixture(scope="module")
def workers(gloo):
    return gloo(_worker)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_two_workers_equal_one(workers, parts, compile):
    alone = _train(0, 1, parts)
    for worker in workers:
        for name, value in worker[f"state {parts} {compile}"].items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5, msg=name)
    first, second = (worker[f"state {parts} {compile}"] for worker in workers)
    trained = [name for name in first if "running" not in name]
    assert all(torch.equal(first[name], second[name]) for name in trained)


def test_layers_train_as_soon_as_they_are_used(workers):
    state, start = workers[0]["state 1 False"], Network().state_dict()
    moved = {name.split(".")[0] for name, value in state.items() if not torch.equal(value, start[name])}
    assert moved == {"layers", "last", "late", "frozen"}


def test_both_workers_send_the_same_messages_in_the_same_order(workers):
    first, second = (worker["sent"] for worker in workers)
    assert first == second


def test_buckets_are_sent_while_the_backward_pass_goes_on(workers):
    (first, early), *later = workers[0]["sent"]
    assert early <= 3  # the frozen layer's two, and the batch norm's own: unused layers hold back the rest once
    assert len(first) > 5
    sizes, early = later[0]
    assert early > len(sizes) // 2


def test_a_parameter_that_was_frozen_at_first_is_averaged_in_each_step(workers):
    assert [worker["thawed"] for worker in workers] == [[1.5, 3.0]] * 2


def test_no_hook_is_left(workers):
    assert all(not hooks for hooks in workers[0]["hooks"])
