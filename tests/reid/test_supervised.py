"""The supervised method against the published trajectories, and its parts."""

import numpy as np
import pytest
import torch
from torch import nn

from rayreid.models.backbones import Backbone, build_backbone
from rayreid.reid.losses import triplet_loss
from rayreid.reid.supervised import SupervisedReID
from rayreid.training.averaging import average_gradients


class Tiny(Backbone):
    """A backbone of one layer."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 6)

    def forward(self, images):
        return self.layer(images.flatten(1))


def tiny_batch(seed=0, images=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, 2, 2, generator=generator), torch.arange(images) // 2


def step(method, optimizer, number, batch):
    method.set_schedules(optimizer, number)
    optimizer.zero_grad()
    out = method.losses(batch)
    out["loss"].backward()
    method.before_update(number)
    optimizer.step()
    method.after_update(number)
    return out


@pytest.mark.parametrize("stem", ["ics", "patchify"])
def test_trajectory_matches_published(golden, stem):
    data = golden(f"supervised_trajectory_{stem}.npz")
    meta = data.meta
    base = build_backbone(
        "vit_tiny",
        stem,
        tuple(meta["img_size"]),
        meta["depth"],
        embed_dim=meta["embed_dim"],
        num_heads=meta["heads"],
        patch_size=meta["patch"],
    )
    method = SupervisedReID(
        base,
        meta["classes"],
        epochs=meta["epochs"],
        steps_per_epoch=meta["iters_per_epoch"],
        warmup_epochs=meta["warmup_epochs"],
        lr=meta["base_lr"],
        bias_lr_factor=meta["bias_lr_factor"],
        momentum=meta["momentum"],
        weight_decay=meta["weight_decay"],
    ).double()
    method.load_state_dict({name: torch.from_numpy(value) for name, value in data.state.items()}, strict=True)
    method.train()
    optimizer = method.build_optimizer()
    for i, (images, labels) in enumerate(zip(data["images"], data["labels"], strict=True)):
        out = step(method, optimizer, i, (torch.from_numpy(images).double(), torch.from_numpy(labels)))
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates["weights"] == pytest.approx(data["lr_weight"][i], rel=1e-9)
        assert rates["biases"] == pytest.approx(data["lr_bias"][i], rel=1e-9)
        assert out["loss"].item() == pytest.approx(data["loss"][i], rel=1e-7)
    method.eval()
    with torch.no_grad():
        feature = method(torch.from_numpy(data["probe"]).double()).numpy()
    scale = np.abs(data["probe_feature"]).max()
    np.testing.assert_allclose(feature, data["probe_feature"], rtol=1e-7, atol=1e-7 * scale)


def test_default_rates_follow_the_published_schedule(golden):
    data = golden("finetune_lr.npz")
    meta = data.meta
    method = SupervisedReID(
        Tiny(), 4, epochs=meta["epochs"], warmup_epochs=meta["warmup_epochs"], lr=meta["base_lr"], steps_per_epoch=3
    )
    optimizer = method.build_optimizer()
    for epoch, rate in enumerate(data["lr"]):
        for number in (3 * epoch, 3 * epoch + 2):  # constant within the epoch
            assert method.set_schedules(optimizer, number)["lr"] == pytest.approx(rate, rel=1e-12)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-12)
    defaults = SupervisedReID(Tiny(), 4)
    assert defaults.set_schedules(defaults.build_optimizer(), 30)["lr"] == pytest.approx(data["lr"][30])


def test_losses_are_cross_entropy_after_the_neck_and_triplet_before_it():
    method = SupervisedReID(Tiny(), 4).train()
    with torch.no_grad():
        method.classifier.weight.mul_(1000)
    images, labels = tiny_batch()
    out = method.losses((images, labels))
    features = method.base(images)
    logits = nn.functional.batch_norm(features, None, None, training=True) @ method.classifier.weight.t()
    torch.testing.assert_close(out["id_loss"], nn.functional.cross_entropy(logits, labels).detach())
    torch.testing.assert_close(out["triplet_loss"], triplet_loss(features, labels).detach())
    torch.testing.assert_close(out["loss"].detach(), out["id_loss"] + out["triplet_loss"])
    assert out["accuracy"] == (logits.argmax(1) == labels).float().mean()
    assert out["loss"].requires_grad
    assert not any(out[name].requires_grad for name in ("id_loss", "triplet_loss", "accuracy"))


def test_margin_reaches_the_loss():
    images, labels = tiny_batch()
    method = SupervisedReID(Tiny(), 4, margin=0.3)
    expected = triplet_loss(method(images), labels, margin=0.3)
    torch.testing.assert_close(method.losses((images, labels))["triplet_loss"], expected.detach())


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizer_has_one_group_per_kind(name, kind):
    method = SupervisedReID(Tiny(), 4, optimizer=name, weight_decay=0.03)
    optimizer = method.build_optimizer()
    assert type(optimizer) is kind
    held = {group["name"]: group["params"] for group in optimizer.param_groups}
    assert [id(p) for p in held["biases"]] == [id(method.base.layer.bias)]
    assert {id(p) for p in held["weights"]} == {
        id(p) for p in (method.base.layer.weight, method.bottleneck.weight, method.classifier.weight)
    }
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.03}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_training_learns_a_batch(name):
    torch.manual_seed(0)
    method = SupervisedReID(Tiny(), 4, epochs=40, warmup_epochs=2, lr=0.05, optimizer=name).train()
    optimizer = method.build_optimizer()
    first = step(method, optimizer, 0, tiny_batch())
    for number in range(1, 40):
        last = step(method, optimizer, number, tiny_batch())
    assert last["accuracy"] == 1
    assert last["loss"] < 0.5 * first["loss"]
    assert not method.bottleneck.bias.any()


def _worker(rank):
    gradients = {}
    images, labels = tiny_batch()
    share = slice(rank * 4, rank * 4 + 4)
    for mining in ("global", "own"):
        torch.manual_seed(0)
        method = SupervisedReID(Tiny(), 4, global_mining=mining == "global").double().train()
        method.losses((images[share].double(), labels[share]))["loss"].backward()
        average_gradients(method.parameters())
        gradients[mining] = method.base.layer.weight.grad
    return gradients


def test_two_workers(gloo):
    """With global mining two workers compute what one does; without, the mean of what each does alone."""
    gradients, _ = gloo(_worker)
    images, labels = tiny_batch()
    for mining, parts in (("global", [slice(0, 8)]), ("own", [slice(0, 4), slice(4, 8)])):
        torch.manual_seed(0)
        method = SupervisedReID(Tiny(), 4).double().train()
        for part in parts:
            (method.losses((images[part].double(), labels[part]))["loss"] / len(parts)).backward()
        torch.testing.assert_close(gradients[mining], method.base.layer.weight.grad, rtol=1e-9, atol=1e-12)


def small_vit(depth=3):
    return build_backbone("vit_tiny", "patchify", (32, 16), depth, embed_dim=12, num_heads=2)


def test_a_rate_falls_from_layer_to_layer():
    method = SupervisedReID(small_vit(), 4, warmup_epochs=0, lr=0.1, layer_decay=0.5)
    optimizer = method.build_optimizer()
    method.set_schedules(optimizer, 0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in method.named_parameters() if p.requires_grad}
    assert found["classifier.weight"] == found["bottleneck.weight"] == pytest.approx(0.1)
    assert found["base.blocks.2.mlp.fc1.weight"] == found["base.norm.weight"] == pytest.approx(0.1 / 2)
    assert found["base.blocks.0.mlp.fc1.weight"] == pytest.approx(0.1 / 8)
    assert found["base.blocks.0.mlp.fc1.bias"] == pytest.approx(0.2 / 8)
    assert found["base.patch_embed.proj.weight"] == found["base.cls_token"] == pytest.approx(0.1 / 16)
    assert set(found) == {name for name, p in method.named_parameters() if p.requires_grad}


def test_a_frozen_backbone_keeps_its_weights_and_the_classifier_learns():
    method = SupervisedReID(Tiny(), 4, epochs=4, steps_per_epoch=2, warmup_epochs=0, lr=0.1, freeze_epochs=1).train()
    optimizer = method.build_optimizer()
    before = {name: value.clone() for name, value in method.named_parameters()}
    for number in range(2):
        step(method, optimizer, number, tiny_batch(number))
    after = dict(method.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("base."))
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    step(method, optimizer, 2, tiny_batch(2))
    assert not torch.equal(before["base.layer.weight"], method.base.layer.weight)


def test_the_triplet_loss_counts_from_an_epoch_on_with_its_weight():
    method = SupervisedReID(Tiny(), 4, steps_per_epoch=3, triplet_weight=0.5, triplet_start_epoch=2)
    optimizer = method.build_optimizer()
    for number, weight in ((0, 0), (5, 0), (6, 0.5), (30, 0.5)):
        method.set_schedules(optimizer, number)
        out = method.losses(tiny_batch())
        torch.testing.assert_close(out["loss"].detach(), out["id_loss"] + weight * out["triplet_loss"])


def test_a_normalised_triplet_loss_does_not_depend_on_the_length_of_the_features():
    features, labels = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) // 2
    plain, scaled = (triplet_loss(factor * features, labels, normalise=True) for factor in (1, 1e-3))
    torch.testing.assert_close(plain, scaled)
    torch.testing.assert_close(plain, triplet_loss(torch.nn.functional.normalize(features), labels))
    assert not torch.isclose(triplet_loss(features, labels), triplet_loss(1e-3 * features, labels))


def test_labels_are_smoothed_as_torch_does_it():
    torch.manual_seed(0)
    smooth = SupervisedReID(Tiny(), 4, label_smoothing=0.1).eval()
    images, labels = tiny_batch()
    logits = smooth.classifier(smooth.bottleneck(smooth(images)))
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(smooth.losses((images, labels))["id_loss"], expected.detach())


def test_equal_features_have_a_mean_of_length_one():
    method = SupervisedReID(Tiny(), 4).eval()
    images, labels = tiny_batch()
    assert method.losses((images[:1].expand(8, -1, -1, -1), labels))["mean_length"] == pytest.approx(1)
    assert method.losses((images, labels))["mean_length"] < 0.95
