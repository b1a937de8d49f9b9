"""Supervised fine-tuning in the project's one loop, fed from a store: without Ray."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rayreid.data.augment.reid_transforms import ReIDTrain
from rayreid.data.datasets import open_dataset
from rayreid.data.sampling.balanced import BalancedPlan
from rayreid.data.sampling.batch_plans import IdentityPlan, ShufflePlan
from rayreid.data.sampling.camera import CameraPlan
from rayreid.data.store.store import ImageStore, finish_store, write_shard
from rayreid.models.backbones import build_backbone
from rayreid.reid.supervised import SupervisedReID
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.feed import Prefetcher
from rayreid.training.guard import NonFiniteLossError
from rayreid.training.loop import LoopSettings, train

CPU = torch.device("cpu")
P, K, EPOCHS = 4, 2, 3
SIZE = (32, 16)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ImageStore:
    folder = tmp_path_factory.mktemp("target") / "store"
    dataset = open_dataset(
        "synthetic", None, part="target", size=list(SIZE), identities=6, test_identities=2, cameras=2
    )
    write_shard(folder, 0, list(dataset.records()), dataset.read, "header")
    finish_store(folder, 1, dataset.name, dataset.version)
    return ImageStore(folder)


class KilledError(Exception):
    pass


def labelled(store):
    rows = store.rows_of("train")
    return rows, store.pids[rows], store.camids[rows]


def run(
    store,
    plan=None,
    backbone=("vit_tiny", "ics"),
    size=SIZE,
    checkpoints=None,
    killed_at=None,
    poison=None,
    epochs=EPOCHS,
    lr=4e-4,
    warmup_epochs=1,
    **changes,
):
    """The trained method and its rows; `killed_at`: before that step; `poison`: a step with a NaN in an image."""
    rows, pids, _ = labelled(store)
    plan = plan or IdentityPlan(rows, pids, P, K, seed=0)
    names, classes = np.unique(pids, return_inverse=True)
    label = np.full(len(store), -1)
    label[rows] = classes
    transform = ReIDTrain(size, (0.5,) * 3, (0.5,) * 3)

    def prepare(images, keys, epoch, taken):
        return transform(images, keys, epoch, 0), torch.as_tensor(label[taken])

    def batches(start):
        for step, batch in enumerate(Prefetcher(store, plan, prepare, CPU)(start), start):
            if step == killed_at:
                raise KilledError
            if step == poison:
                batch.data[0][1] = torch.nan
            yield replace(batch)

    torch.manual_seed(0)
    name, stem = backbone
    options = {"depth": 1} if name.startswith("vit") else {"depths": (1, 1, 1, 1)} if name.startswith("swin") else {}
    base = build_backbone(name, stem, size, drop_path=0.1 if options else 0.0, **options)
    method = SupervisedReID(
        base, len(names), epochs=epochs, warmup_epochs=warmup_epochs, lr=lr, steps_per_epoch=plan.steps_per_epoch
    )
    before = {name: value.clone() for name, value in method.state_dict().items()}
    logged: list[dict[str, float]] = []
    settings = LoopSettings(plan.steps_per_epoch, epochs, log_every=1, checkpoint_seconds=-1.0, **changes)
    train(method.train(), batches, settings, CPU, checkpoints, logged.append)
    return method, logged, before


def same(one, other):
    state, expected = one.state_dict(), other.state_dict()
    return all(torch.equal(state[name], expected[name]) for name in expected)


# Checkpoints, faults, precision: the loop's, not a second copy


@pytest.mark.slow
def test_what_is_killed_within_an_epoch_ends_with_the_same_weights(store, tmp_path):
    whole, expected, _ = run(store)
    steps = len(expected) // EPOCHS
    assert steps > 1
    killed_at, checkpoints = steps + 1, Checkpoints(tmp_path)
    with pytest.raises(KilledError):
        run(store, checkpoints=checkpoints, killed_at=killed_at)
    resumed, rows, _ = run(store, checkpoints=checkpoints)
    assert same(resumed, whole)
    for name in ("loss", "lr"):
        assert [row[name] for row in rows] == [row[name] for row in expected[killed_at:]]


def test_a_loss_that_is_not_finite_ends_it_with_the_images(store):
    with pytest.raises(NonFiniteLossError) as caught:
        run(store, poison=2)
    plan = IdentityPlan(*labelled(store)[:2], P, K, seed=0)
    epoch, within = divmod(2, plan.steps_per_epoch)
    assert set(caught.value.keys) == {store.keys[int(row)] for row in plan.batch(epoch, within)}
    assert "step 2" in str(caught.value)


def test_rows_tell_losses_rates_norms_and_pace(store):
    _, rows, _ = run(store, epochs=1)
    assert {
        "loss",
        "id_loss",
        "triplet_loss",
        "accuracy",
        "lr",
        "lr_bias",
        "grad_norm",
        "images_per_second",
        "wait",
    } <= (set(rows[-1]))
    assert rows[0]["loss"] == pytest.approx(rows[0]["id_loss"] + rows[0]["triplet_loss"])
    assert rows[0]["id_loss"] == pytest.approx(np.log(6), abs=0.02)  # of a classifier that starts at almost nothing


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_near_single(store, precision):
    single, rows, before = run(store, epochs=2)
    mixed, found, _ = run(store, epochs=2, precision=precision)
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in rows], rel=0.05)
    assert ("loss_scale" in found[-1]) == (precision == "fp16")
    name = "base.norm.weight"
    moved, expected = (method.state_dict()[name] - before[name] for method in (mixed, single))
    assert mixed.state_dict()[name].dtype == torch.float32
    assert torch.cosine_similarity(moved, expected, dim=0) > 0.9


# Every backbone, every sampler


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        (("vit_tiny", "patchify"), SIZE),
        (("vit_tiny", "conv"), SIZE),
        (("vit_tiny", "ics"), SIZE),
        (("swin_tiny", "patchify"), (64, 32)),
        (("resnet50", "patchify"), (64, 32)),
    ],
)
def test_two_steps_move_every_parameter_of_every_backbone(store, backbone, size):
    plan = IdentityPlan(*labelled(store)[:2], P, K, seed=0)
    plan.steps_per_epoch = 2  # of a fresh ResNet-50 the first moves only the scales that its residuals begin with, at 0
    method, rows, before = run(store, plan, backbone, size, epochs=1, lr=0.05, warmup_epochs=0)
    assert len(rows) == 2 and all(np.isfinite(row["loss"]) for row in rows)
    still = [name for name, value in method.named_parameters() if torch.equal(value, before[name])]
    assert set(still) - {"bottleneck.bias"} == set(), still


def test_every_sampler_trains(store):
    rows, pids, camids = labelled(store)
    plans = [
        CameraPlan(rows, pids, camids, P, K, seed=0),
        ShufflePlan(rows, P * K, seed=0),
        BalancedPlan(rows, pids, camids, P * K, seed=0),
    ]
    for plan in plans:
        _, logged, _ = run(store, plan, epochs=1)
        assert len(logged) == plan.steps_per_epoch
        assert all(np.isfinite(row["loss"]) for row in logged)
