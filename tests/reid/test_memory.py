"""Cluster memory against the published losses, gradients and updates, and a plain loop; two workers against one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rayreid.errors import UserError
from rayreid.reid.memory import ClusterMemory
from rayreid.training.averaging import average_gradients

VARIANTS = ("mean", "hard")


@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_published(golden, variant):
    data = golden("cluster_memory.npz")
    part = {name.removeprefix(f"{variant}/"): value for name, value in data.items() if name.startswith(f"{variant}/")}
    memory = ClusterMemory(torch.from_numpy(part["memory0"]), data.meta["temp"], data.meta["momentum"], variant)
    for step, (inputs, targets) in enumerate(zip(part["inputs"], part["targets"], strict=True)):
        x, y = torch.from_numpy(inputs).requires_grad_(), torch.from_numpy(targets)
        loss = memory(x, y)
        memory.update(x, y)
        loss.backward()
        assert loss.item() == pytest.approx(float(part["loss"][step]), abs=1e-5)
        np.testing.assert_allclose(x.grad, part["grad"][step], atol=1e-5)
        np.testing.assert_allclose(memory.features, part["memory_after"][step], atol=1e-5)


def moved_by_loop(features, inputs, targets, momentum, variant):
    """The update, one instance after the other."""
    memory, inputs = features.clone(), F.normalize(inputs, dim=1)
    for cluster in targets.unique().tolist():
        instances = inputs[targets == cluster]
        if variant == "hard":
            instances = instances[[int((instances @ memory[cluster]).argmin())]]
        for instance in instances:
            mixed = momentum * memory[cluster] + (1 - momentum) * instance
            memory[cluster] = mixed / mixed.norm()
    return memory


@pytest.mark.parametrize("variant", VARIANTS)
def test_update_matches_a_loop_over_uneven_clusters(variant):
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        centres = torch.randn(7, 5, generator=draw, dtype=torch.float64)
        inputs = torch.randn(30, 5, generator=draw, dtype=torch.float64)
        targets = torch.randint(0, 5, (30,), generator=draw).square().clamp(max=5)  # uneven; some absent
        memory = ClusterMemory(centres, momentum=0.3, variant=variant)
        expected = moved_by_loop(memory.features, inputs, targets, 0.3, variant)
        memory.update(inputs, targets)
        torch.testing.assert_close(memory.features, expected)
        torch.testing.assert_close(memory.features[6], F.normalize(centres[6], dim=0))


def test_the_loss_is_of_the_memory_before_the_update_and_sends_it_no_gradient():
    memory = ClusterMemory(torch.eye(3, 4))
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.arange(6) % 3
    (before,) = torch.autograd.grad(memory(x, y), x)
    loss = memory(x, y)
    memory.update(x, y)
    (after,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not list(memory.parameters())
    assert not memory.features.requires_grad
    assert "features" in memory.state_dict()


def test_of_equally_unlike_instances_the_first_moves_the_memory():
    memory = ClusterMemory(torch.tensor([[1.0, 0.0, 0.0]]), momentum=0.0)
    memory.update(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), torch.zeros(3, dtype=torch.long))
    assert memory.features.tolist() == [[0, 1, 0]]


def test_refusals():
    with pytest.raises(UserError, match="without clusters"):
        ClusterMemory(torch.empty(0, 4))
    for wrong in ({"temperature": 0.0}, {"momentum": 1.0}, {"momentum": -0.1}):
        with pytest.raises(UserError, match="temperature above 0"):
            ClusterMemory(torch.eye(2), **wrong)


def _steps(variant: str, share: slice) -> dict[str, torch.Tensor]:
    """Three steps of one weight and a memory on a worker's share of each batch, of whole clusters."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=draw).requires_grad_()
    memory = ClusterMemory(torch.randn(5, 6, generator=draw), variant=variant)
    for _ in range(3):
        inputs = torch.randn(12, 4, generator=draw)[share]
        targets = torch.randperm(5, generator=draw)[:4].repeat_interleave(3)[share]
        features = inputs @ weight
        loss = memory(features, targets)
        memory.update(features, targets)
        (weight.grad,) = torch.autograd.grad(loss, weight)
        average_gradients([weight])
        with torch.no_grad():
            weight -= 0.1 * weight.grad
    return {"memory": memory.features, "weight": weight.detach()}


def _worker(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    share = slice(rank * 6, rank * 6 + 6)
    return {variant: _steps(variant, share) for variant in VARIANTS}


def test_two_workers_have_the_memory_and_the_weights_of_one(gloo):
    workers = gloo(_worker)
    for variant in VARIANTS:
        alone = _steps(variant, slice(None))
        for name, expected in alone.items():
            torch.testing.assert_close(workers[0][variant][name], workers[1][variant][name], rtol=0, atol=0)
            torch.testing.assert_close(workers[0][variant][name], expected, rtol=1e-5, atol=1e-6)
