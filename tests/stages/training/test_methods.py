"""Every method on every backbone that it is said to be for, built from a configuration and trained for some steps."""

import pytest
import torch

from pairs import PAIRS, SIZE, SMALL, shrink
from rayreid.config import Backbone, Experiment, Pretrain, Source
from rayreid.pipeline.experiment_runner import _params
from rayreid.pipeline.tags import tags_of
from rayreid.pretraining.collapse import CollapseWatch, SpreadWatch
from rayreid.pretraining.dino import DINO
from rayreid.pretraining.moby import MoBY
from rayreid.pretraining.mocov2 import MoCoV2
from rayreid.pretraining.mocov3 import MoCoV3
from rayreid.stages.training.initial_weights import network
from rayreid.stages.training.methods import METHODS, MethodSetup, crops_of, resolved

IMAGES = 6
HEADS = {"out_dim": 32, "hidden_dim": 64, "warmup_epochs": 0}
SETTINGS = {
    "dino": {**HEADS, "bottleneck_dim": 16, "local_crops": 2, "freeze_last_layer_epochs": 0, "lr": 1e-3},
    "mocov3": {**HEADS, "lr": 1e-3},
    "mocov2": {**HEADS, "queue": 32, "lr": 0.03},
    "moby": {**HEADS, "queue": 32, "lr": 1e-3},
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    shrink(monkeypatch)


def build(method: str, kind: str, **changes):
    torch.manual_seed(0)
    config = Pretrain(method=method, epochs=4, batch_size=IMAGES, **{**SETTINGS[method], **changes})
    backbone = Backbone(img_size=SIZE, **SMALL[kind])
    recipe = config.recipe(backbone)
    pair = network(backbone, recipe.drop_path), network(backbone)
    return METHODS[method].build(*pair, MethodSetup(config, recipe, steps_per_epoch=2)), config, recipe


def batch_of(method: str) -> list[torch.Tensor]:
    """Views of one image share its low frequencies, so that there is something to learn."""
    images = torch.randn(IMAGES, 3, 8, 4)

    def view(count: int, size: tuple[int, int]) -> torch.Tensor:
        shown = torch.nn.functional.interpolate(images, size).repeat(count, 1, 1, 1)
        return shown + 0.3 * torch.randn_like(shown)

    return [view(2, SIZE), *([view(2, (32, 16))] if method == "dino" else [])]


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_the_loss_of_a_batch_falls_while_it_is_trained_on(method, kind):
    trained, _, _ = build(method, kind)
    batch = batch_of(method)
    optimizer = trained.build_optimizer()
    start = {name: value.clone() for name, value in trained.state_dict().items() if name.startswith(("queue", "loss."))}
    losses = []
    for step in range(6):
        trained.load_state_dict(start, strict=False)  # the batch's own keys would be its negatives
        trained.set_schedules(optimizer, step)
        found = trained.losses(batch)
        found["loss"].backward()
        norms = trained.before_update(step)
        assert all(torch.isfinite(value) for value in {**found, **norms}.values())
        assert norms["grad_norm"] > 0 and 0 < found["feature_std"] < 1
        optimizer.step()
        optimizer.zero_grad()
        trained.after_update(step)
        losses.append(found["loss"].item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert trained.backbone.eval()(batch[0]).shape == (2 * IMAGES, trained.backbone.num_features)


def test_the_pairs_are_those_of_the_paper_s_tables():
    assert sorted(PAIRS) == sorted(
        [("dino", kind) for kind in SMALL]
        + [("mocov3", "vit"), ("mocov3", "ics"), ("mocov3", "resnet50"), ("mocov2", "resnet50")]
        + [("moby", "vit"), ("moby", "ics"), ("moby", "swin")]
    )


@pytest.mark.parametrize(("method", "kind"), [("dino", DINO), ("mocov3", MoCoV3), ("mocov2", MoCoV2), ("moby", MoBY)])
def test_a_name_stands_for_its_method_and_watch(method, kind):
    trained, config, recipe = build(method, "resnet50" if method == "mocov2" else "vit")
    assert type(trained) is kind
    watch = METHODS[method].watch(config, recipe)
    assert type(watch) is (CollapseWatch if method == "dino" else SpreadWatch)


def test_moco_v3_s_parts_follow_the_backbone():
    vit, _, _ = build("mocov3", "vit")
    resnet, _, _ = build("mocov3", "resnet50")
    layers = [sum(isinstance(m, torch.nn.Linear) for m in method.base.projector) for method in (vit, resnet)]
    assert layers == [3, 2]
    assert (vit.temperature, resnet.temperature) == (0.2, 1.0)
    assert (vit.rates.optimizer, resnet.rates.optimizer) == ("adamw", "lars")


@pytest.mark.parametrize(
    ("kind", "freeze", "frozen"),
    [("vit", "auto", True), ("vit", False, False), ("ics", "auto", False), ("ics", True, True)],
)
def test_the_patch_projection_is_frozen_where_the_stem_is_a_single_projection(kind, freeze, frozen):
    method, _, _ = build("mocov3", kind, freeze_patch=freeze)
    names = {name for name, p in method.base.backbone.named_parameters() if not p.requires_grad}
    assert names == ({"patch_embed.proj.weight", "patch_embed.proj.bias"} if frozen else set())


def test_drop_path_is_on_the_trained_side_only():
    method, _, recipe = build("moby", "swin")
    assert recipe.drop_path == 0.2
    drops = [
        {m.drop_prob for m in side.modules() if type(m).__name__ == "DropPath"}
        for side in (method.base, method.momentum)
    ]
    assert max(drops[0]) == pytest.approx(0.2) and not drops[1]


def test_only_moco_v2_s_momentum_is_constant():
    for method, kind in (("mocov3", "vit"), ("mocov2", "resnet50"), ("moby", "vit")):
        momentum = build(method, kind)[0].rates.momentum
        assert (momentum(8) == 1.0) == (method != "mocov2")
        assert momentum(0) == {"mocov3": 0.99, "mocov2": 0.999, "moby": 0.99}[method]


@pytest.mark.parametrize(("method", "views"), [("dino", 2), ("mocov3", 1), ("mocov2", 1), ("moby", 1)])
def test_only_dino_has_local_crops(method, views):
    config = Pretrain(method=method)
    recipe = config.recipe(Backbone(name="resnet50" if method == "mocov2" else "vit_tiny"))
    assert crops_of(config, recipe, (256, 128)).local_crops == (8 if views == 2 else 0)


def test_what_auto_came_to_is_told_with_the_optimizer():
    found = resolved(Pretrain(method="mocov3", epochs=300, batch_size=1024, lr=0.5), Backbone(), 10)
    assert found == {
        "warmup_epochs": 40,
        "min_lr": 0.0,
        "weight_decay": 0.1,
        "teacher_momentum": 0.99,
        "drop_path": 0.0,
        "out_dim": 256,
        "hidden_dim": 4096,
        "temperature": 0.2,
        "freeze_patch": True,
        "optimizer": "adamw",
    }
    told = resolved(Pretrain(), Backbone(), 10)
    assert told["local_size"] == (128, 64) and "queue" not in told and "temperature" not in told


def test_a_run_is_tagged_with_its_method_and_logs_what_that_uses():
    source = Source(dataset="synthetic")
    experiment = Experiment(pool=source, target=source, pretrain=Pretrain(method="moby"))
    assert tags_of(experiment)["method"] == "moby"
    keys = {key for key in _params(experiment) if key.startswith("pretrain.")}
    assert {"pretrain.method", "pretrain.queue", "pretrain.epochs"} <= keys
    assert not keys & {"pretrain.teacher_temp", "pretrain.local_crops", "pretrain.freeze_patch"}
