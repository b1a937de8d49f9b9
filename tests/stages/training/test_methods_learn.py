"""Methods on the backbones that they are for learn something: the probe metric rises above that of fresh weights.

The persons are drawn: stripes of a direction and a width. In colours, where they begin and the light differ from image
to image, so that pixels say little; what stays is what the crops of a pre-training have in common, too. To convolutions
with fresh weights the colours alone say much, so theirs are grey pictures, and the images of a person are crops of one,
as those of a pre-training are. No pre-training sees the persons of the probe.

The networks are small, the runs short, and the settings such that much happens in few steps: a gain says that the parts
work together, nothing of how good a method is. Neither Ray nor MLflow is started.

DINO with the stem `ics` is left out: in as few steps, at rates of 2.5e-4 to 1e-3, its features grew alike, and the
probe was seen to rise by 0.03 at most. On the pedestrians of the demo it learns within 9 epochs: see docs/results.md.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pairs import PAIRS, SIZE, SMALL, shrink
from rayreid.config import Backbone, Pretrain
from rayreid.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD, MultiCrop
from rayreid.data.augment.reid_transforms import ReIDTest
from rayreid.data.batch import ImageBatch
from rayreid.data.sampling.batch_plans import ShufflePlan
from rayreid.evaluation.probe import choose_probe
from rayreid.stages.training.initial_weights import network
from rayreid.stages.training.methods import METHODS, MethodSetup, crops_of

MARGIN = 0.04
PERSONS, CAMERAS, POOL, BATCH, EPOCHS = 40, 6, 256, 32, 20
HEAD = {"hidden_dim": 128, "out_dim": 64}
SETTINGS = {
    "dino": {
        **{"lr": 1e-3, "hidden_dim": 128, "out_dim": 256, "bottleneck_dim": 64, "local_crops": 2},
        **{"teacher_momentum": 0.98, "freeze_last_layer_epochs": 0, "weight_decay_end": 0.04},
    },
    "mocov3": {**HEAD, "lr": 1e-3},
    # The queue begins with random keys, which drive all queries one way: they are gone before the rate has warmed up
    "mocov2": {**HEAD, "lr": 0.1, "epochs": 40, "warmup_epochs": 2, "queue": 64, "temperature": 0.1}
    | {"teacher_momentum": 0.99},
    "moby": {**HEAD, "lr": 1e-3, "queue": 128},
}
OF_PAIR = {
    ("dino", "resnet50"): {"lr": 3e-3, "epochs": 30, "local_crops": 4},
    ("mocov3", "resnet50"): {"lr": 10.0, "temperature": 0.2, "teacher_momentum": 0.95, "epochs": 10},  # LARS
    ("mocov3", "ics"): {"epochs": 10},
    ("moby", "ics"): {"epochs": 10},
}
CONVOLUTIONS = ("ics", "resnet50")
BEFORE_EVERY_CHANGE = {
    ("dino", "vit"),
    ("mocov2", "resnet50"),
    ("moby", "vit"),
}


def waves(count: int, images: int, rng: np.random.Generator, periods: tuple[int, int], tilted: float) -> np.ndarray:
    """Stripes in [−1, 1], (count, images, H, W): a direction and a width for each of `count` persons."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    angle = rng.uniform(0, np.pi, (count, 1, 1, 1)) + rng.normal(0, tilted, (count, images, 1, 1))
    start = rng.uniform(0, 2 * np.pi, angle.shape)
    along = x * np.cos(angle) + y * np.sin(angle)
    return np.sin(2 * np.pi * along / rng.uniform(*periods, (count, 1, 1, 1)) + start)


def coloured(count: int, images: int, seed: int) -> list[np.ndarray]:
    """uint8 (H, W, 3), `images` of each of `count` persons, each of two colours."""
    rng = np.random.default_rng(seed)
    share = 0.5 + 0.5 * waves(count, images, rng, (6, 20), tilted=0.1)[..., None]
    one, other = rng.random((2, count, 1, 1, 1, 3))
    drawn = (share * one + (1 - share) * other) * rng.uniform(0.5, 1.2, (count, images, 1, 1, 1))
    drawn += rng.normal(0, 0.05, drawn.shape)
    return list((drawn.clip(0, 1) * 255).astype(np.uint8).reshape(-1, *SIZE, 3))


def grey(count: int, seed: int) -> list[np.ndarray]:
    """The same, one picture each."""
    drawn = 127 + 77 * waves(count, 1, np.random.default_rng(seed), (4, 16), tilted=0.0)[..., None]
    return list(drawn.repeat(3, axis=-1).astype(np.uint8).reshape(-1, *SIZE, 3))


Look = Callable[[torch.nn.Module], float]


def probe_of(shown: torch.Tensor) -> Look:
    """Gives the probe's mAP of a backbone, on images (N, 3, H, W), `CAMERAS` in a row of each person."""
    pids, camids = np.repeat(np.arange(PERSONS), CAMERAS), np.tile(np.arange(CAMERAS), PERSONS)
    probe = choose_probe(pids.astype(np.int32), camids.astype(np.int16), np.arange(len(shown)), len(shown))
    shown = shown[torch.from_numpy(probe.rows)]

    @torch.no_grad()
    def mean_average_precision(backbone: torch.nn.Module) -> float:
        backbone.eval()
        features = backbone(shown)
        backbone.train()
        return probe.score(features)["probe_mAP"]

    return mean_average_precision


@pytest.fixture(scope="module")
def in_colours() -> tuple[list[np.ndarray], Look]:
    images = ImageBatch.collate(coloured(PERSONS, CAMERAS, seed=2))
    return coloured(POOL // 2, 2, seed=1), probe_of(ReIDTest(SIZE, IMAGENET_MEAN, IMAGENET_STD)(images))


@pytest.fixture(scope="module")
def in_grey() -> tuple[list[np.ndarray], Look]:
    crops, images = MultiCrop(SIZE, SIZE, 0), ImageBatch.collate(grey(PERSONS, seed=2))
    keys = [str(person) for person in range(PERSONS)]
    pairs = [crops(images, keys, epoch, 7)[0].unflatten(0, (2, PERSONS)) for epoch in range(CAMERAS // 2)]
    return grey(POOL, seed=1), probe_of(torch.cat(pairs).transpose(0, 1).flatten(0, 1))


@pytest.fixture
def world(request, kind):
    """The pool of a pre-training, and what looks at a backbone."""
    return request.getfixturevalue("in_grey" if kind in CONVOLUTIONS else "in_colours")


def pre_train(method: str, kind: str, world: tuple[list[np.ndarray], Look], seed: int, **changes):
    """The probe's mAP before and after; before, batch norm has seen the pool: no gain."""
    pool, look = world
    settings = {"epochs": EPOCHS, **SETTINGS[method], **OF_PAIR.get((method, kind), {}), **changes}
    config = Pretrain(method=method, batch_size=BATCH, **settings)
    backbone = Backbone(img_size=SIZE, **SMALL[kind])
    recipe, plan = config.recipe(backbone), ShufflePlan(np.arange(len(pool)), BATCH, seed)
    torch.manual_seed(seed)
    networks = network(backbone, recipe.drop_path), network(backbone)
    trained = METHODS[method].build(*networks, MethodSetup(config, recipe, plan.steps_per_epoch))
    crops, optimizer = crops_of(config, recipe, SIZE), trained.build_optimizer()

    def batch(step: int) -> list[torch.Tensor]:
        epoch, within = divmod(step, plan.steps_per_epoch)
        rows = plan.batch(epoch, within)
        return crops(ImageBatch.collate([pool[row] for row in rows]), [str(row) for row in rows], epoch, seed)

    with torch.no_grad():
        for step in range(4 * plan.steps_per_epoch if kind in CONVOLUTIONS else 0):  # 3 % of what they were is left
            trained.backbone(batch(step)[0])
    before = look(trained.backbone)
    for step in range(config.epochs * plan.steps_per_epoch):
        trained.set_schedules(optimizer, step)
        trained.losses(batch(step))["loss"].backward()
        trained.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        trained.after_update(step)
    return before, look(trained.backbone)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    shrink(monkeypatch, width=96)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other, over networks as small
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param(*pair, marks=() if pair in BEFORE_EVERY_CHANGE else pytest.mark.thorough)
        for pair in PAIRS
        if pair != ("dino", "ics")
    ],
)
def test_the_probe_rises(method, kind, world):
    before, after = pre_train(method, kind, world, seed=0)
    assert after > before + MARGIN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind"),
    [("mocov3", "vit"), ("mocov2", "resnet50"), pytest.param("dino", "resnet50", marks=pytest.mark.thorough)],
)
def test_it_does_not_rise_where_nothing_is_learned(method, kind, world):
    """Not by what batch norm's statistics do meanwhile, either."""
    before, after = pre_train(method, kind, world, seed=0, lr=1e-12, epochs=5)
    assert after == pytest.approx(before, abs=MARGIN / 2)
