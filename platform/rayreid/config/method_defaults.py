"""What the pre-training methods differ in: their published numbers, and the backbones that they are for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from rayreid.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """What a method runs with, for a batch size, a number of epochs and a backbone.

    The names are those of the section `pretrain` of an experiment file. What a method does not use it leaves at the
    value here.

    Attributes:
        optimizer: AdamW, SGD or LARS.
        lr: peak rate.
        warmup_epochs: epochs of linear warm-up.
        min_lr: rate at the end of the cosine.
        weight_decay: DINO's at the beginning.
        teacher_momentum: of the moving average, at the beginning where it rises.
        drop_path: in the network that is trained.
        out_dim, hidden_dim: of the head.
        clip: largest norm of the gradient: DINO's of every tensor, MoBY's of all together; None: any.
        local_crops: DINO's.
        temperature: of the contrast.
        queue: keys in it.
        freeze_patch: whether the patch projection keeps its weights.
    """

    optimizer: Literal["adamw", "sgd", "lars"]
    lr: float
    warmup_epochs: int
    min_lr: float
    weight_decay: float
    teacher_momentum: float
    drop_path: float
    out_dim: int
    hidden_dim: int
    clip: float | None = None
    local_crops: int = 0
    temperature: float = 0.2
    queue: int = 0
    freeze_patch: bool = False


@dataclass(frozen=True)
class Published:
    """A method's recipe, for any batch size and number of epochs.

    Attributes:
        lr: at a batch of `lr_batch` images; it is scaled in proportion.
        warmup: share of the epochs.
        numbers: the other fields of `Recipe`.
    """

    lr: float
    lr_batch: int
    warmup: Fraction
    numbers: Mapping[str, Any]

    def recipe(self, batch_size: int, epochs: int, given: Mapping[str, Any]) -> Recipe:
        """The recipe at that size, `given` taking the place of what it says."""
        scaled = {"lr": self.lr * batch_size / self.lr_batch, "warmup_epochs": warmup(epochs, self.warmup)}
        return Recipe(**{**scaled, **self.numbers, **given})


def warmup(epochs: int, share: Fraction) -> int:
    """That share of the epochs, rounded up; short runs need it most, and one epoch is left for the peak rate."""
    return min(math.ceil(epochs * share), epochs - 1)


_CONTRAST = {
    "min_lr": 0.0,
    "teacher_momentum": 0.99,
    "drop_path": 0.0,
    "out_dim": 256,
    "hidden_dim": 4096,
    "local_crops": 0,
    "temperature": 0.2,
}

DINO = Published(
    lr=5e-4,
    lr_batch=256,
    warmup=Fraction(10, 100),
    numbers={
        "optimizer": "adamw",
        "min_lr": 1e-6,
        "weight_decay": 0.04,
        "teacher_momentum": 0.996,
        "drop_path": 0.1,
        "out_dim": 65536,
        "hidden_dim": 2048,
        "clip": 3.0,
        "local_crops": 8,
    },
)
"""Caron et al., arXiv 2104.14294, as in TransReID-SSL, arXiv 2111.12084; the same for every backbone."""

MOCOV3 = Published(
    lr=1.5e-4,
    lr_batch=256,
    warmup=Fraction(40, 300),
    numbers={**_CONTRAST, "optimizer": "adamw", "weight_decay": 0.1},
)
"""Chen et al., arXiv 2104.02057, section 5: ViT, 300 epochs (there of 4,096 images a batch, or 1,024)."""

MOCOV3_RESNET = Published(
    lr=0.3,
    lr_batch=256,
    warmup=Fraction(10, 300),
    numbers={**_CONTRAST, "optimizer": "lars", "weight_decay": 1e-6, "temperature": 1.0},
)
"""The same, its public code's configuration for ResNet-50 and 300 epochs (4,096 images a batch)."""

MOCOV2 = Published(
    lr=0.03,
    lr_batch=256,
    warmup=Fraction(0),
    numbers={
        **_CONTRAST,
        "optimizer": "sgd",
        "weight_decay": 1e-4,
        "teacher_momentum": 0.999,
        "out_dim": 128,
        "hidden_dim": 2048,
        "queue": 65536,
    },
)
"""He et al., arXiv 1911.05722, section 3.3; head, temperature and cosine of arXiv 2003.04297 (256 images a batch)."""

MOBY = Published(
    lr=1e-3,
    lr_batch=512,
    warmup=Fraction(5, 300),
    numbers={
        **_CONTRAST,
        "optimizer": "adamw",
        "min_lr": 5e-6,
        "weight_decay": 0.05,
        "drop_path": 0.2,
        "clip": 5.0,
        "queue": 4096,
    },
)
"""Xie et al., arXiv 2105.04553, section 3, and its public configurations of Swin-T and DeiT-S (512 images a batch)."""

PUBLISHED: dict[str, dict[str, Published]] = {
    "dino": {"vit": DINO, "swin": DINO, "resnet50": DINO},
    "mocov3": {"vit": MOCOV3, "resnet50": MOCOV3_RESNET},
    "mocov2": {"resnet50": MOCOV2},
    "moby": {"vit": MOBY, "swin": MOBY},
}
"""By method and family of backbones."""

REFUSALS = {
    "mocov3": "its frozen patch projection is a ViT's, its other recipe ResNet-50's; for a Swin take moby",
    "mocov2": "SGD without warm-up does not train a Transformer; for one take mocov3 or moby",
    "moby": "it is MoCo v2 made for Transformers, with drop path on one side; for ResNet-50 take mocov2 or mocov3",
}
"""Why a method has no recipe for the other families."""

BY_METHOD = (
    *("lr", "warmup_epochs", "min_lr", "weight_decay", "teacher_momentum", "drop_path", "out_dim", "hidden_dim"),
    *("clip", "local_crops", "temperature", "queue", "freeze_patch"),
)
"""Keys whose `auto` is the method's own number."""

USED_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("weight_decay_end", "teacher_temp", "student_temp", "centre_momentum"), ("dino",)),
    **dict.fromkeys(("freeze_last_layer_epochs", "bottleneck_dim", "local_size", "local_scale"), ("dino",)),
    "local_crops": ("dino",),
    "clip": ("dino", "moby"),
    "temperature": ("mocov3", "mocov2", "moby"),
    "queue": ("mocov2", "moby"),
    "freeze_patch": ("mocov3",),
}
"""Keys that not every method has a use for."""

OWN_KEYS = {*BY_METHOD, *USED_BY}
"""Keys that mean another thing, or nothing, where the method changes."""


def published(method: str, backbone: str) -> Published:
    """The recipe of a method for a backbone.

    Raises:
        UserError: the two do not go together; says why.
    """
    family = backbone.partition("_")[0]
    if family not in PUBLISHED[method]:
        raise UserError(f"pretrain.method {method} is not for backbone {backbone}: {REFUSALS[method]}")
    return PUBLISHED[method][family]


def uses(method: str, key: str) -> bool:
    """Whether a method has a use for a key of the section `pretrain`."""
    return method in USED_BY.get(key, (method,))


def misused(method: str, key: str, value: Any) -> str | None:
    """Why a key that a method has no use for is refused; None where it has, or the value says as much."""
    own = {family.numbers.get(key) for family in PUBLISHED.get(method, {}).values()}
    if method not in PUBLISHED or uses(method, key) or value in own:
        return None
    return f"the method {method} has no use for it, only {' and '.join(USED_BY[key])}; leave it out"
