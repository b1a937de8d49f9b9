"""Registry of the pre-training methods, each built from its section of the experiment file."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rayreid.config import PATCH, Backbone, Pretrain
from rayreid.config.method_defaults import BY_METHOD, Recipe, uses
from rayreid.data.augment.augment import MultiCrop
from rayreid.execution.trainer import Watch
from rayreid.models import backbones
from rayreid.pretraining.collapse import CollapseWatch, SpreadWatch
from rayreid.pretraining.dino import DINO
from rayreid.pretraining.dino_schedules import DINOSchedules
from rayreid.pretraining.moby import MoBY
from rayreid.pretraining.mocov2 import MoCoV2
from rayreid.pretraining.mocov3 import MoCoV3, patch_projection
from rayreid.pretraining.momentum import Rates
from rayreid.training.loop import Method
from rayreid.training.schedules import Constant, Schedule, WarmupCosine


class Pretraining(Method, Protocol):
    """A method that the loop trains, with the backbone to keep."""

    @property
    def backbone(self) -> backbones.Backbone:
        """The backbone to keep for ReID."""

    def to(self, device: torch.device) -> "Pretraining":
        """Move the networks to a device and return the method."""


@dataclass(frozen=True)
class MethodSetup:
    """Settings that a method is built from.

    Attributes:
        config: The section `pretrain` of the experiment file.
        recipe: Hyper-parameters of the method, with `auto` resolved.
        steps_per_epoch: Number of optimizer steps per epoch of the whole pool if the length is given in steps, else of
            the images to train on.
        fresh: Whether the networks were initialised at random, not loaded.
    """

    config: Pretrain
    recipe: Recipe
    steps_per_epoch: int
    fresh: bool = True

    def rates(self, momentum: Schedule | None = None, clip: float | None = None) -> Rates:
        """Return warm-up and cosine; the momentum encoder's momentum rises to 1 unless `momentum` is given."""
        r = self.recipe
        steps = round(self.config.length(self.steps_per_epoch) * self.steps_per_epoch)
        lr = WarmupCosine(r.lr, r.min_lr, steps, round(r.warmup_epochs * self.steps_per_epoch))
        rising = WarmupCosine(r.teacher_momentum, 1.0, steps)
        return Rates(r.optimizer, lr, r.weight_decay, momentum or rising, clip)


Builder = Callable[[backbones.Backbone, backbones.Backbone, MethodSetup], Pretraining]


@dataclass(frozen=True)
class Entry:
    """A method.

    Attributes:
        build: Its builder from two networks, the second without drop path.
        watch: The watch over its metric rows that reports a collapse.
        chance: Function from a recipe to the loss of a method that has learned nothing; None if that is not known.
    """

    build: Builder
    watch: Callable[[Pretrain, Recipe], Watch] = lambda config, recipe: SpreadWatch()
    chance: Callable[[Recipe], float | None] = lambda recipe: None


def _dino(student: backbones.Backbone, teacher: backbones.Backbone, setup: MethodSetup) -> Pretraining:
    c, r = setup.config, setup.recipe
    return DINO(
        student,
        teacher,
        DINOSchedules(
            epochs=c.length(setup.steps_per_epoch),
            steps_per_epoch=setup.steps_per_epoch,
            lr=r.lr,
            min_lr=r.min_lr,
            warmup_epochs=r.warmup_epochs,
            weight_decay=r.weight_decay,
            weight_decay_end=c.weight_decay_end,
            teacher_momentum=r.teacher_momentum,
            teacher_temp=c.teacher_temp,
            warmup_teacher_temp=c.teacher_temp_start,
            warmup_teacher_temp_epochs=c.teacher_temp_warmup_epochs,
        ),
        out_dim=r.out_dim,
        hidden_dim=r.hidden_dim,
        bottleneck_dim=c.bottleneck_dim,
        student_temp=c.student_temp,
        centre_momentum=c.centre_momentum,
        clip=r.clip,
        freeze_last_layer_epochs=c.freeze_last_layer_epochs,
    )


def _mocov3(base: backbones.Backbone, momentum: backbones.Backbone, setup: MethodSetup) -> Pretraining:
    r = setup.recipe
    vit = isinstance(base, backbones.ViT)
    return MoCoV3(
        base,
        momentum,
        setup.rates(),
        layers=3 if vit else 2,
        hidden_dim=r.hidden_dim,
        out_dim=r.out_dim,
        temperature=r.temperature,
        frozen=patch_projection(base, setup.fresh) if isinstance(base, backbones.ViT) and r.freeze_patch else None,
    )


def _mocov2(base: backbones.Backbone, momentum: backbones.Backbone, setup: MethodSetup) -> Pretraining:
    r = setup.recipe
    return MoCoV2(
        base,
        momentum,
        setup.rates(momentum=Constant(r.teacher_momentum)),
        hidden_dim=r.hidden_dim,
        out_dim=r.out_dim,
        temperature=r.temperature,
        queue=r.queue,
    )


def _moby(base: backbones.Backbone, momentum: backbones.Backbone, setup: MethodSetup) -> Pretraining:
    r = setup.recipe
    return MoBY(
        base,
        momentum,
        setup.rates(clip=r.clip),
        hidden_dim=r.hidden_dim,
        out_dim=r.out_dim,
        temperature=r.temperature,
        queue=r.queue,
    )


METHODS: Mapping[str, Entry] = {
    "dino": Entry(
        _dino,
        lambda config, recipe: CollapseWatch(recipe.out_dim, config.freeze_last_layer_epochs),
        lambda recipe: math.log(recipe.out_dim),
    ),
    "mocov3": Entry(_mocov3),
    "mocov2": Entry(_mocov2),
    "moby": Entry(_moby),
}
"""The methods, by the value of `pretrain.method`."""


def crops_of(config: Pretrain, recipe: Recipe, img_size: tuple[int, int], patch: int = PATCH) -> MultiCrop:
    """Return the augmentation, which differs between methods only in the number of local crops."""
    global_size, local_size = config.crop_sizes(img_size, patch)
    return MultiCrop(global_size, local_size, recipe.local_crops, config.global_scale, config.local_scale)


def resolved(config: Pretrain, backbone: Backbone, steps_per_epoch: int) -> dict[str, Any]:
    """Return the resolved value of every `auto` of the method, and its optimizer; see `Pretrain.recipe`."""
    recipe = config.recipe(backbone, steps_per_epoch)
    words = [name for name in BY_METHOD if getattr(config, name) == "auto" and uses(config.method, name)]
    found = {**{name: getattr(recipe, name) for name in words}, "optimizer": recipe.optimizer}
    if config.local_size == "auto" and recipe.local_crops:
        found["local_size"] = config.crop_sizes(backbone.img_size, backbone.patch)[1]
    return found
