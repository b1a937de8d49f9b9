"""MoCo v2, MoCo v3 and MoBY, driven as the training loop drives them."""

import math

import pytest
import torch

from rayreid.models.backbones import build_backbone
from rayreid.pretraining.contrast import contrast_batch, contrast_queue
from rayreid.pretraining.moby import MoBY
from rayreid.pretraining.mocov2 import MoCoV2
from rayreid.pretraining.mocov3 import MoCoV3, patch_projection
from rayreid.pretraining.momentum import MomentumMethod, Rates, follow
from rayreid.training.schedules import Constant, WarmupCosine

STEPS, IMAGES, SIZE = 4, 6, (32, 16)
HEADS = {"hidden_dim": 16, "out_dim": 8}
QUEUES = {MoCoV2: {"queue": 15}, MoBY: {"queue": 15}, MoCoV3: {}}


def backbone(stem: str = "ics", drop_path: float = 0.0):
    return build_backbone("vit_tiny", stem, SIZE, depth=2, drop_path=drop_path, embed_dim=24, num_heads=2)


def rates(optimizer: str = "adamw", **changes) -> Rates:
    schedules = {"lr": Constant(1e-2), "weight_decay": 0.1, "momentum": WarmupCosine(0.5, 1.0, STEPS)}
    return Rates(optimizer, **{**schedules, **changes})


def method_of(kind: type[MomentumMethod], seed: int = 0, stem: str = "ics", **changes) -> MomentumMethod:
    torch.manual_seed(seed)
    return kind(backbone(stem), backbone(stem), rates(**changes), **HEADS, **QUEUES[kind]).double()


def batch_of(step: int, images: slice = slice(None)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    crops = torch.randn(2, IMAGES, 3, *SIZE, generator=generator, dtype=torch.float64)
    return [crops[:, images].flatten(0, 1)]


def step_of(method: MomentumMethod, optimizer, step: int, parts=(slice(None),)) -> dict[str, torch.Tensor]:
    method.set_schedules(optimizer, step)
    for part in parts:
        losses = method.losses(batch_of(step, part))
        (losses["loss"] / len(parts)).backward()
    scalars = method.before_update(step)
    optimizer.step()
    optimizer.zero_grad()
    method.after_update(step)
    return {**losses, **scalars}


KINDS = pytest.mark.parametrize("kind", [MoCoV3, MoCoV2, MoBY])


@KINDS
def test_the_momentum_side_gets_no_gradient_and_is_in_no_group(kind):
    method = method_of(kind)
    method.losses(batch_of(0))["loss"].backward()
    assert all(p.grad is None for p in method.momentum.parameters())
    trained = {id(p) for group in method.build_optimizer().param_groups for p in group["params"]}
    assert not trained & {id(p) for p in method.momentum.parameters()}
    everything_else = [p for name, p in method.named_parameters() if not name.startswith("momentum.")]
    assert trained == {id(p) for p in everything_else}
    assert all(p.grad is not None for p in everything_else)


@KINDS
def test_the_momentum_encoder_starts_as_the_trained_one_and_follows_its_parameters(kind):
    method = method_of(kind)
    optimizer = method.build_optimizer()
    pairs = list(zip(method.momentum.parameters(), method.base.parameters(), strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    for step in range(2):
        before = [ours.clone() for ours, _ in pairs]
        step_of(method, optimizer, step)
        # As published: moved at the beginning of the next step, with that step's momentum
        kept = 1 - 0.5 * (1 - 0.5) * (1 + math.cos(math.pi * (step + 1) / STEPS))
        for old, (ours, theirs) in zip(before, pairs, strict=True):
            torch.testing.assert_close(ours.data, kept * old.data + (1 - kept) * theirs.data)


def test_following_leaves_buffers_alone():
    ours, theirs = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    theirs.running_mean += 1
    torch.nn.init.constant_(theirs.weight, 3.0)
    follow(ours, theirs, 0.5)
    assert ours.weight.tolist() == [2, 2] and ours.running_mean.tolist() == [0, 0]


@KINDS
def test_either_side_keeps_its_own_running_statistics(kind):
    method = method_of(kind)
    method.losses(batch_of(0))
    counts = {name: int(value) for name, value in method.named_buffers() if name.endswith("num_batches_tracked")}
    views = 1 if kind is MoCoV2 else 2
    assert set(counts.values()) == {views}, "one pass per view, on both sides"


def test_moco_v3_contrasts_each_view_s_prediction_with_the_other_s_key():
    method = method_of(MoCoV3)
    first, second = batch_of(0)[0].chunk(2)
    q1, q2 = (method.predictor(method.base(view)[1]) for view in (first, second))
    k1, k2 = (method.momentum(view)[1] for view in (first, second))
    expected = 0.4 * (contrast_batch(q1, k2, 0.2).loss + contrast_batch(q2, k1, 0.2).loss)
    torch.testing.assert_close(method.losses(batch_of(0))["loss"], expected)


def test_moco_v2_contrasts_the_first_view_with_the_second_s_key_and_queues_that():
    method = method_of(MoCoV2)
    first, second = batch_of(0)[0].chunk(2)
    q, k = method.base(first)[1], method.momentum(second)[1]
    torch.testing.assert_close(method.losses(batch_of(0))["loss"], contrast_queue(q, k, method.queue, 0.2).loss)
    method.after_update(0)
    torch.testing.assert_close(method.queue.keys[:IMAGES], torch.nn.functional.normalize(k, dim=1))


def test_moby_contrasts_each_view_s_prediction_with_the_other_s_key_and_that_view_s_queue():
    method = method_of(MoBY)
    first, second = batch_of(0)[0].chunk(2)
    q1, q2 = (method.predictor(method.base(view)[1]) for view in (first, second))
    k1, k2 = (method.momentum(view)[1] for view in (first, second))
    expected = contrast_queue(q1, k2, method.queue2, 0.2).loss + contrast_queue(q2, k1, method.queue1, 0.2).loss
    torch.testing.assert_close(method.losses(batch_of(0))["loss"], expected)
    method.after_update(0)
    for queue, keys in ((method.queue1, k1), (method.queue2, k2)):
        torch.testing.assert_close(queue.keys[:IMAGES], torch.nn.functional.normalize(keys, dim=1))


@KINDS
def test_micro_batches_are_one_batch_where_no_batch_norm_and_no_other_image_matter(kind):
    """Queues and momentum encoder move once per step; MoCo v3's negatives are the micro-batch's."""
    whole, parts = method_of(kind, stem="patchify"), method_of(kind, stem="patchify")
    for method in (whole, parts):
        method.eval()
    optimizers = [method.build_optimizer() for method in (whole, parts)]
    for step in range(STEPS):
        step_of(whole, optimizers[0], step)
        step_of(parts, optimizers[1], step, (slice(0, 3), slice(3, 6)))
    state, other = whole.state_dict(), parts.state_dict()
    queues = [name for name in state if name.startswith("queue")]
    if kind is not MoCoV3:
        torch.testing.assert_close(other, state)
        assert {int(state[name]) for name in queues if name.endswith("position")} == {STEPS * IMAGES % 15}
    else:
        assert not queues and not torch.equal(other["predictor.0.weight"], state["predictor.0.weight"])


@pytest.mark.parametrize(("optimizer", "kind", "decayed"), [("adamw", MoCoV3, True), ("lars", MoCoV3, False),
                                                           ("sgd", MoCoV2, True), ("adamw", MoBY, False)])  # fmt: skip
def test_who_gets_weight_decay(optimizer, kind, decayed):
    method = method_of(kind, optimizer=optimizer)
    built = method.build_optimizer()
    assert type(built).__name__.lower() == optimizer
    rows = method.set_schedules(built, 0)
    matrices, vectors = built.param_groups
    assert matrices["weight_decay"] == 0.1 and vectors["weight_decay"] == (0.1 if decayed else 0.0)
    assert rows == {"lr": 1e-2, "teacher_momentum": 0.5}
    assert all(p.dim() > 1 for p in matrices["params"])


def test_lars_scales_matrices_by_their_own_length():
    """‖step‖ = lr · 0.001 · ‖w‖, near enough, for a matrix; lr · ‖g‖ for a vector (You et al., equation 6)."""
    method = method_of(MoCoV3, optimizer="lars", weight_decay=1e-6)
    optimizer = method.build_optimizer()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    method.set_schedules(optimizer, 0)
    method.losses(batch_of(0))["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    optimizer.step()
    for name, parameter in method.named_parameters():
        if name in gradients:
            moved, gradient = (parameter.detach() - before[name]).norm(), gradients[name].norm()
            matrix = parameter.dim() > 1 and not name.endswith("bias")
            expected = 1e-2 * (1e-3 * before[name].norm() if matrix else gradient)
            torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-9, msg=name)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_all_gradients_together_are_clipped(clip):
    method = method_of(MoBY, clip=clip)
    method.losses(batch_of(0))["loss"].backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    before = torch.cat([g.flatten() for g in gradients])
    scalars = method.before_update(0)
    after = torch.cat([g.flatten() for g in gradients])
    torch.testing.assert_close(scalars["grad_norm"], before.norm())
    scale = 1.0 if clip is None else clip / (before.norm() + 1e-6)
    torch.testing.assert_close(after, before * scale)


@pytest.mark.parametrize("stem", ["patchify", "ics"])
def test_a_frozen_projection_keeps_its_weights_on_both_sides(stem):
    torch.manual_seed(0)
    base = backbone(stem)
    frozen = patch_projection(base, fresh=True)
    method = MoCoV3(base, backbone(stem), rates(weight_decay=0.5), **HEADS, frozen=frozen).double()
    before = {name: p.clone() for name, p in method.named_parameters() if "patch_embed" in name}
    optimizer = method.build_optimizer()
    for step in range(2):
        step_of(method, optimizer, step)
    assert all(p.grad is None for p in frozen.parameters())
    for name, parameter in method.named_parameters():
        if "patch_embed" in name:
            assert torch.equal(parameter, before[name]) == ("patch_embed.proj" in name), name


def test_a_fresh_projection_is_drawn_as_published_and_a_loaded_one_kept():
    torch.manual_seed(0)
    vit = build_backbone("vit_tiny", depth=1)
    loaded = vit.patch_embed.proj.weight.clone()
    assert torch.equal(patch_projection(vit, fresh=False).weight, loaded)
    projection = patch_projection(vit, fresh=True)
    bound = math.sqrt(6 / (3 * 16 * 16 + 192))
    assert 0.99 * bound < projection.weight.abs().max() <= bound
    assert not projection.bias.any()


@KINDS
def test_what_is_kept_is_the_trained_backbone(kind):
    method = method_of(kind)
    assert method.backbone is method.base.backbone


@KINDS
def test_what_is_logged(kind):
    method = method_of(kind)
    losses = method.losses(batch_of(0))
    assert set(losses) == {"loss", "accuracy", "feature_std"}
    assert losses["loss"].requires_grad
    assert not losses["accuracy"].requires_grad and not losses["feature_std"].requires_grad
    assert 0 <= losses["accuracy"] <= 1 and 0 < losses["feature_std"] < 1
