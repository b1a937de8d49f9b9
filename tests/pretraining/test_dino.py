"""DINO against the published implementation, driven as the training loop drives it."""

import copy

import numpy as np
import pytest
import torch
from trajectory import TRAJECTORIES, crops_of, method_of, run

from rayreid.models.backbones import build_backbone
from rayreid.pretraining.dino import DINO
from rayreid.pretraining.dino_loss import DINOLoss
from rayreid.pretraining.dino_schedules import DINOSchedules
from rayreid.pretraining.head import DINOHead
from rayreid.training.schedules import LinearWarmup


def follow(case, stem: str, dtype: torch.dtype) -> tuple[np.ndarray, DINO]:
    method = method_of(case, stem, dtype)
    optimizer = method.build_optimizer()
    losses = [run(method, optimizer, step, [crops_of(case, step, dtype)]) for step in range(len(case["loss"]))]
    return np.array(losses), method


@torch.no_grad()
def probe_feature(case, method: DINO, dtype: torch.dtype) -> np.ndarray:
    return method.backbone.eval()(torch.from_numpy(case["probe"]).to(dtype)).double().numpy()


@pytest.mark.parametrize("stem", TRAJECTORIES)
def test_trajectory_in_float64(golden, stem):
    case = golden(TRAJECTORIES[stem])
    losses, method = follow(case, stem, torch.float64)
    np.testing.assert_allclose(losses, case["loss"], rtol=1e-7)
    np.testing.assert_allclose(method.loss.centre.numpy(), case["center"], rtol=1e-7, atol=1e-9)
    feature = probe_feature(case, method, torch.float64)
    np.testing.assert_allclose(feature, case["teacher_feature"], rtol=0, atol=1e-7 * case["teacher_feature"].std())


@pytest.mark.parametrize("stem", TRAJECTORIES)
def test_trajectory_in_float32(golden, stem):
    case = golden(TRAJECTORIES[stem])
    losses, method = follow(case, stem, torch.float32)
    np.testing.assert_allclose(losses, case["loss"], rtol=1e-4)
    feature, expected = probe_feature(case, method, torch.float32), case["teacher_feature"]
    cosine = (feature * expected).sum(1) / np.linalg.norm(feature, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() >= 0.9999


@pytest.mark.parametrize("stem", TRAJECTORIES)
def test_schedules_of_the_trajectory(golden, stem):
    case = golden(TRAJECTORIES[stem])
    method = method_of(case, stem, torch.float32)
    optimizer = method.build_optimizer()
    for step in range(len(case["loss"])):
        logged = method.set_schedules(optimizer, step)
        decayed, undecayed = optimizer.param_groups
        assert decayed["lr"] == undecayed["lr"] == pytest.approx(case["lr"][step], abs=1e-12)
        assert decayed["weight_decay"] == pytest.approx(case["wd"][step], abs=1e-12)
        assert undecayed["weight_decay"] == 0
        assert logged["teacher_momentum"] == pytest.approx(case["momentum"][step], abs=1e-12)


def test_loss_gradient_and_centre_equal_the_published_ones(golden):
    case = golden("dino_loss.npz")
    meta = case.meta
    loss = DINOLoss(meta["out_dim"], meta["student_temp"], meta["center_momentum"])
    temperature = LinearWarmup(meta["warmup_teacher_temp"], meta["teacher_temp"], meta["warmup_teacher_temp_epochs"])
    for call, expected in enumerate(case["loss"]):
        student = torch.from_numpy(case["student"][call]).requires_grad_()
        terms = loss(student, torch.from_numpy(case["teacher"][call]), temperature(call))
        terms.loss.backward()
        loss.update_centre()
        assert terms.loss.item() == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(student.grad, case["grad"][call], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(
            loss.centre.numpy().ravel(), case["center_after"][call].ravel(), rtol=1e-5, atol=1e-6
        )


def test_loss_is_entropy_plus_divergence():
    torch.manual_seed(0)
    logits = torch.randn(4, 16)
    # Two crops of two images; the student's view 1 − i says what the teacher's view i says: nothing diverges
    student = torch.cat([logits[2:], logits[:2]]) / 0.4
    terms = DINOLoss(16, student_temp=0.1)(student, logits, teacher_temp=0.04)
    probabilities = torch.softmax(logits / 0.04, dim=1)
    assert terms.teacher_entropy.item() == pytest.approx(
        torch.special.entr(probabilities).sum(1).mean().item(), rel=1e-5
    )
    assert terms.kl.item() == pytest.approx(0, abs=1e-4)


def test_loss_refuses_rows_that_are_not_whole_crops():
    with pytest.raises(ValueError, match="5 student and 4 teacher"):
        DINOLoss(8)(torch.zeros(5, 8), torch.zeros(4, 8), 0.04)


def small(**options) -> DINO:
    torch.manual_seed(0)
    size = {"img_size": (32, 16), "depth": 1, "embed_dim": 24, "num_heads": 2}
    rates = {"epochs": 4, "steps_per_epoch": 3, "lr": 1e-3, "warmup_epochs": 0}
    rates |= {name: options.pop(name) for name in DINOSchedules.__annotations__ if name in options}
    head = {"out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8}
    student, teacher = build_backbone("vit_tiny", drop_path=0.1, **size), build_backbone("vit_tiny", **size)
    return DINO(student, teacher, DINOSchedules(**rates), **head, **options)


def random_crops(images: int, local: int = 4) -> list[torch.Tensor]:
    shapes = [(2 * images, 3, 32, 16)] + ([(local * images, 3, 16, 16)] if local else [])
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("largest", [True, False])
def test_accumulation_is_one_big_batch(golden, largest):
    # Without batch norm and drop path micro-batches must do what their union does; centre and teacher move once a step
    case = golden(TRAJECTORIES["patchify"])
    images = case["crops_global"].shape[2]
    divisors = [count for count in range(2, images + 1) if images % count == 0]
    micro_batches = divisors[0] if largest else divisors[-1]  # down to one image each
    expected, whole = follow(case, "patchify", torch.float64)
    method = method_of(case, "patchify", torch.float64)
    optimizer = method.build_optimizer()
    size = images // micro_batches
    shares = [slice(start, start + size) for start in range(0, images, size)]
    losses = [
        run(method, optimizer, step, [crops_of(case, step, torch.float64, share) for share in shares])
        for step in range(len(expected))
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    assert whole.loss.centre.abs().max() > 0
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(method.state_dict()[name], value, rtol=1e-7, atol=1e-9, msg=name)


def test_centre_waits_for_the_update():
    method = small()
    method.losses(random_crops(2))
    assert method.loss.centre.count_nonzero() == 0
    method.after_update(0)
    assert method.loss.centre.count_nonzero() > 0
    after = method.loss.centre.clone()
    method.after_update(1)  # nothing noted in between
    assert torch.equal(method.loss.centre, after)


def test_last_layer_is_frozen_in_the_first_epoch_only():
    method = small(freeze_last_layer_epochs=1)
    optimizer = method.build_optimizer()
    moved = []
    for step in range(method.schedules.steps_per_epoch + 1):
        before = method.student.head.last_layer.weight_v.detach().clone()
        run(method, optimizer, step, [random_crops(2)])
        moved.append(not torch.equal(before, method.student.head.last_layer.weight_v))
    assert moved == [False] * method.schedules.steps_per_epoch + [True]
    assert torch.equal(method.student.head.last_layer.weight_g, torch.ones(32, 1))


def test_each_gradient_is_clipped_by_itself():
    method = small(clip=3.0, freeze_last_layer_epochs=0)
    parameters = [p for p in method.student.parameters() if p.requires_grad]
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, (0.5, 10.0)[index % 2] / parameter.numel() ** 0.5)
    method.before_update(0)
    norms = [p.grad.norm().item() for p in parameters]
    assert norms == pytest.approx([(0.5, 3.0)[index % 2] for index in range(len(parameters))], rel=1e-4)


def test_teacher_follows_parameters_and_keeps_its_own_buffers(golden):
    case = golden(TRAJECTORIES["ics"])
    method = method_of(case, "ics", torch.float32)
    optimizer = method.build_optimizer()
    assert not any(p.requires_grad for p in method.teacher.parameters())
    run(method, optimizer, 1, [crops_of(case, 0, torch.float32)])
    teacher, student = method.teacher.state_dict(), method.student.state_dict()
    momentum = method.schedules.at(1).teacher_momentum
    name = "backbone.blocks.0.attn.qkv.weight"
    start = torch.from_numpy(case.state[name])
    assert not torch.equal(student[name], start)
    torch.testing.assert_close(teacher[name], momentum * start + (1 - momentum) * student[name])
    # The student saw two crop sizes, the teacher one
    counts = [state["backbone.patch_embed.conv.7.num_batches_tracked"].item() for state in (teacher, student)]
    assert counts == [1, 2]
    assert not torch.equal(*(s["backbone.patch_embed.conv.7.running_mean"] for s in (teacher, student)))


def test_optimizer_decays_the_published_parameters(golden):
    method = method_of(golden(TRAJECTORIES["ics"]), "ics", torch.float32)
    names = {id(p): name for name, p in method.named_parameters()}
    groups = {g["decayed"]: {names[id(p)] for p in g["params"]} for g in method.build_optimizer().param_groups}
    assert "student.head.last_layer.weight_v" in groups[True]
    assert "student.backbone.cls_token" in groups[True]
    assert "student.backbone.patch_embed.conv.1.BN.weight" in groups[False]
    assert "student.head.mlp.0.bias" in groups[False]
    trained = groups[True] | groups[False]
    assert trained == {name for name, p in method.named_parameters() if p.requires_grad}
    assert not any(name.startswith("teacher") or name.endswith("weight_g") for name in trained)


def test_teacher_starts_as_the_students_copy_and_is_what_is_kept():
    method = small()
    for ours, theirs in zip(method.student.parameters(), method.teacher.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert method.backbone is method.teacher.backbone


def test_trains_without_local_crops_under_bfloat16_autocast():
    method = small()
    optimizer = method.build_optimizer()
    crops = random_crops(2, local=0)
    exact = method.eval().losses(crops)["loss"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method.losses(crops)
    assert losses["loss"].dtype == torch.float32
    assert losses["loss"].item() == pytest.approx(exact, rel=0.02)
    assert losses["kl"].item() + losses["teacher_entropy"].item() == pytest.approx(losses["loss"].item(), rel=1e-5)
    assert 0 < losses["feature_std"].item() <= 1
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]
    losses["loss"].backward()
    method.before_update(0)
    optimizer.step()
    method.after_update(0)
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())


def test_collapsed_features_have_no_spread():
    method = small()
    for parameter in method.teacher.backbone.patch_embed.parameters():
        parameter.zero_()
    assert method.losses(random_crops(2))["feature_std"].item() == pytest.approx(0, abs=1e-5)


def test_state_returns_from_a_checkpoint():
    method, optimizer = (first := small()), first.build_optimizer()
    run(method, optimizer, 0, [random_crops(2)])
    state = copy.deepcopy((method.state_dict(), optimizer.state_dict()))
    crops = random_crops(2)
    method.eval()
    expected = run(method, optimizer, 1, [crops])
    other = small().eval()
    other_optimizer = other.build_optimizer()
    other.load_state_dict(state[0])
    other_optimizer.load_state_dict(state[1])
    assert run(other, other_optimizer, 1, [crops]) == expected
    for name, value in method.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_head_gives_cosines_and_starts_as_published():
    torch.manual_seed(0)
    head = DINOHead(24, 4096, hidden_dim=512, bottleneck_dim=64)
    logits = head(100 * torch.randn(8, 24))
    assert logits.shape == (8, 4096)
    assert 0.1 < logits.abs().max() <= 1
    for layer in head.mlp[::2]:
        assert layer.bias.count_nonzero() == 0
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert head.last_layer.weight_v.abs().max().item() == pytest.approx(64**-0.5, rel=1e-3)
