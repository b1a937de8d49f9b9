"""Published numbers of the pre-training methods, and the backbones that each method supports."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from rayreid.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of a method for one batch size, number of epochs and backbone.

    The names are those of the section `pretrain` of an experiment file. Fields that a method does not use keep the
    default values below.

    Attributes:
        optimizer: AdamW, SGD or LARS.
        lr: Peak learning rate.
        warmup_epochs: Epochs of linear warm-up; not whole if the length of the run is given in steps.
        min_lr: Learning rate at the end of the cosine.
        weight_decay: Weight decay; for DINO, its initial value.
        teacher_momentum: Momentum of the moving average; where it rises, its initial value.
        drop_path: Rate of drop path in the network that is trained.
        out_dim: Output dimension of the head.
        hidden_dim: Hidden dimension of the head.
        clip: Largest norm of the gradient, of each tensor for DINO, of all tensors together for MoBY; None: no limit.
        local_crops: Number of local crops (DINO).
        temperature: Temperature of the contrastive loss.
        queue: Number of keys in the queue.
        freeze_patch: Whether the patch projection keeps its initial weights.
    """

    optimizer: Literal["adamw", "sgd", "lars"]
    lr: float
    warmup_epochs: float
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
    """The published recipe of a method, which scales to any batch size and number of epochs.

    Attributes:
        lr: Learning rate at a batch of `lr_batch` images; it is scaled in proportion to the batch size.
        lr_batch: Images in the batch to which `lr` refers.
        warmup: Share of the epochs that is warm-up.
        numbers: The other fields of `Recipe`.
    """

    lr: float
    lr_batch: int
    warmup: Fraction
    numbers: Mapping[str, Any]

    def recipe(self, batch_size: int, epochs: int, given: Mapping[str, Any]) -> Recipe:
        """Return the recipe for a batch size and number of epochs; the fields in `given` replace the published ones."""
        scaled = {"lr": self.lr * batch_size / self.lr_batch, "warmup_epochs": warmup(epochs, self.warmup)}
        return Recipe(**{**scaled, **self.numbers, **given})


def warmup(length: int, share: Fraction) -> int:
    """Return that share of a length in epochs or steps, rounded up, because short runs need warm-up most.

    At least one epoch or step is left at the peak rate.
    """
    return min(math.ceil(length * share), length - 1)


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
"""Chen et al., arXiv 2104.02057, section 5: ViT, 300 epochs (with 4,096 or 1,024 images a batch)."""

MOCOV3_RESNET = Published(
    lr=0.3,
    lr_batch=256,
    warmup=Fraction(10, 300),
    numbers={**_CONTRAST, "optimizer": "lars", "weight_decay": 1e-6, "temperature": 1.0},
)
"""The configuration of MoCo v3's public code for ResNet-50 and 300 epochs (4,096 images a batch)."""

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
"""Published recipes by method and family of backbones."""

REFUSALS = {
    "mocov3": "its frozen patch projection is a ViT's, its other recipe ResNet-50's; for a Swin take moby",
    "mocov2": "SGD without warm-up does not train a Transformer; for one take mocov3 or moby",
    "moby": "it is MoCo v2 made for Transformers, with drop path on one side; for ResNet-50 take mocov2 or mocov3",
}
"""The reason why a method has no recipe for the other families."""

BY_METHOD = (
    *("lr", "warmup_epochs", "min_lr", "weight_decay", "teacher_momentum", "drop_path", "out_dim", "hidden_dim"),
    *("clip", "local_crops", "temperature", "queue", "freeze_patch"),
)
"""Keys whose `auto` stands for the method's own number."""

USED_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("weight_decay_end", "teacher_temp", "student_temp", "centre_momentum"), ("dino",)),
    **dict.fromkeys(("teacher_temp_start", "teacher_temp_warmup_epochs"), ("dino",)),
    **dict.fromkeys(("freeze_last_layer_epochs", "bottleneck_dim", "local_size", "local_scale"), ("dino",)),
    "local_crops": ("dino",),
    "clip": ("dino", "moby"),
    "temperature": ("mocov3", "mocov2", "moby"),
    "queue": ("mocov2", "moby"),
    "freeze_patch": ("mocov3",),
}
"""Keys that only some methods use."""

OWN_KEYS = {*BY_METHOD, *USED_BY}
"""Keys that change their meaning, or lose it, when the method changes."""


def published(method: str, backbone: str) -> Published:
    """Return the published recipe of a method for a backbone.

    Raises:
        UserError: The method does not support the backbone; the message gives the reason.
    """
    family = backbone.partition("_")[0]
    if family not in PUBLISHED[method]:
        raise UserError(f"pretrain.method {method} is not for backbone {backbone}: {REFUSALS[method]}")
    return PUBLISHED[method][family]


def uses(method: str, key: str) -> bool:
    """Return whether a method uses a key of the section `pretrain`."""
    return method in USED_BY.get(key, (method,))


def misused(method: str, key: str, value: Any) -> str | None:
    """Return the reason for refusing a key that the method does not use, or None if the key is acceptable.

    A key is acceptable if the method uses it, or if its value is the method's own number.
    """
    own = {family.numbers.get(key) for family in PUBLISHED.get(method, {}).values()}
    if method not in PUBLISHED or uses(method, key) or value in own:
        return None
    return f"the method {method} has no use for it, only {' and '.join(USED_BY[key])}; leave it out"
