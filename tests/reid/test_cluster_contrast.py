"""The method of cluster contrast: its feature, its loss, its memory and what a checkpoint brings back."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rayreid.models.backbones import Backbone
from rayreid.reid.cluster_contrast import ClusterContrast
from rayreid.reid.memory import ClusterMemory
from rayreid.training.averaging import average_gradients

CLUSTERS = 3


class Tiny(Backbone):
    """A backbone of one layer."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 6)

    def forward(self, images):
        return self.layer(images.flatten(1))


def batch(seed=0, images=12):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, 2, 2, generator=generator), torch.arange(images) // (images // CLUSTERS)


def centres(clusters=CLUSTERS):
    return torch.randn(clusters, 6, generator=torch.Generator().manual_seed(9))


def method(seed=0, clusters=CLUSTERS, **changes):
    torch.manual_seed(seed)
    made = ClusterContrast(Tiny(), **changes).train()
    if clusters:
        made.remember(centres(clusters))
    return made


def step(made, optimizer, number, *parts):
    made.set_schedules(optimizer, number)
    optimizer.zero_grad()
    for part in parts:
        made.losses(part)["loss"].backward()
    made.before_update(number)
    optimizer.step()
    made.after_update(number)


def test_the_feature_is_the_normalised_output_of_the_neck():
    made, (images, _) = method(), batch()
    expected = F.normalize(F.batch_norm(made.base(images), None, None, training=True), dim=1)
    torch.testing.assert_close(made(images), expected)
    made.eval()
    scale, shift = made.bottleneck.scale_and_shift()
    torch.testing.assert_close(made(images), F.normalize(made.base(images) * scale + shift, dim=1))


def test_the_loss_is_the_memory_s_and_the_memory_moves_after_the_update():
    made, (images, targets) = method(), batch()
    memory = ClusterMemory(centres())
    features = made(images)
    expected = memory(features, targets)
    out = made.losses((images, targets))
    torch.testing.assert_close(out["loss"], expected)
    assert out["accuracy"] == ((features @ memory.features.t()).argmax(1) == targets).float().mean()
    torch.testing.assert_close(made.memory.features, memory.features)
    optimizer = made.build_optimizer()
    out["loss"].backward()
    optimizer.step()
    made.after_update(0)
    memory.update(features, targets)  # those of the forward pass, before the parameters moved
    torch.testing.assert_close(made.memory.features, memory.features)


def test_the_memory_moves_once_by_all_micro_batches():
    made, (images, targets) = method(), batch()
    order = torch.arange(12).reshape(2, 6)  # cluster 1 is in both
    parts = [(images[part], targets[part]) for part in order]
    with torch.no_grad():
        features = torch.cat([made(part) for part, _ in parts])
    memory = ClusterMemory(centres())
    memory.update(features, targets)
    step(made, made.build_optimizer(), 0, *parts)
    torch.testing.assert_close(made.memory.features, memory.features)
    assert made._seen == []


def test_one_rate_for_all_parameters_that_falls_every_so_many_epochs():
    made = method(steps_per_epoch=2, lr=0.1, decay_every=3, weight_decay=0.01, momentum=0.8)
    optimizer = made.build_optimizer()
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["momentum"]) == (0.01, 0.8)
    held = {id(value) for value in group["params"]}
    assert held == {id(v) for v in (made.base.layer.weight, made.base.layer.bias, made.bottleneck.weight)}
    rates = [made.set_schedules(optimizer, number)["lr"] for number in (0, 5, 6, 11, 12)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert group["lr"] == rates[-1]


def test_the_defaults_are_the_published_numbers():
    made = method()
    optimizer = made.build_optimizer()
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (3.5e-4, 5e-4, 0.9)
    assert made.set_schedules(optimizer, 49 * 200)["lr"] == pytest.approx(3.5e-6)
    assert (made.memory.temperature, made.memory.momentum, made.memory.variant) == (0.05, 0.2, "hard")


@pytest.mark.parametrize("clusters", [0, 2, 3, 5])
def test_a_state_brings_its_number_of_clusters(clusters):
    saved, other = method(), method(seed=1, clusters=clusters)
    step(saved, saved.build_optimizer(), 0, batch())
    other.load_state_dict(saved.state_dict())
    for name, value in saved.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert other.losses(batch())["loss"] == saved.losses(batch())["loss"]


def test_another_architecture_s_state_is_refused():
    with pytest.raises(RuntimeError, match="layer"):
        method().load_state_dict({"memory.features": centres(2)})


def test_it_learns_its_clusters():
    made = method(lr=0.05)
    optimizer = made.build_optimizer()
    first = made.losses(batch())["loss"].item()
    made._seen.clear()
    for number in range(30):
        step(made, optimizer, number, batch())
    assert made.losses(batch())["loss"].item() < 0.2 * first
    assert not made.bottleneck.bias.any()


def _worker(rank):
    made = method(clusters=0).double()
    made.remember(centres().double() + rank)  # as if rounded differently
    optimizer = made.build_optimizer()
    for number in range(3):
        images, targets = batch(number)
        share = slice(rank * 6, rank * 6 + 6)
        optimizer.zero_grad()
        made.losses((images[share].double(), targets[share]))["loss"].backward()
        average_gradients(made.parameters())
        optimizer.step()
        made.after_update(number)
    return made.state_dict()


def test_two_workers_are_as_one(gloo):
    alone = method(clusters=0).double()
    alone.remember(centres().double())
    optimizer = alone.build_optimizer()
    for number in range(3):
        images, targets = batch(number)
        step(alone, optimizer, number, (images.double(), targets))
    for state in gloo(_worker):
        torch.testing.assert_close(state, alone.state_dict(), rtol=1e-9, atol=1e-12)
