"""Stage *pretrain*: pool or subset → backbone weights, by a self-supervised method on Ray Train."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayreid.config import Backbone, Pretrain, Resources
from rayreid.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from rayreid.data.sampling.batch_plans import ShufflePlan
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.execution.production import StageContext
from rayreid.execution.trainer import METRICS, Watch, fit
from rayreid.models.weights import save_backbone
from rayreid.pretraining.learning import LearningWatch
from rayreid.selection.subset_file import subset_rows
from rayreid.stages.training import initial_weights
from rayreid.stages.training.early_stopping import Judged, MedianStopping
from rayreid.stages.training.initial_weights import Start, network
from rayreid.stages.training.methods import METHODS, MethodSetup, Pretraining, crops_of, resolved
from rayreid.stages.training.probe import on_target
from rayreid.stages.training.trained_weights import augmented, header_of, plan_training, training_on
from rayreid.storage.artifacts import Artifact

VERSION = 2
WEIGHTS = "backbone.safetensors"


def plan(
    pool: Artifact,
    subset: Artifact | None,
    config: Pretrain,
    backbone: Backbone,
    seed: int,
    resources: Resources,
    target: Artifact | None = None,
    stopping: MedianStopping | None = None,
) -> Artifact:
    """Plan the weights of a backbone pre-trained on a pool, or on a subset of it.

    Args:
        pool: Image store of the pool.
        subset: Subset of the pool to train on; None: the whole pool.
        config: The section `pretrain`.
        backbone: The network.
        seed: The experiment's seed.
        resources: Resources of the training.
        target: Image store that a probe runs on, if `probe_every` is not 0. It does not affect the weights, so it is
            an auxiliary artifact and not an input.
        stopping: Rule that may stop the training early, which then has no weights; None: never.
    """
    images = {"pool": pool, **({"subset": subset} if subset else {})}
    job = partial(_pretrain, config, backbone, seed, resources, stopping)
    auxiliary = {"target": target} if target and config.probed else {}
    return plan_training("pretrain", VERSION, images, None, config, backbone, seed, job, auxiliary)


def refuse_test_images(dataset: str, splits: Container[str]) -> None:
    """Refuse a pool that contains test images, on which a target is evaluated.

    Raises:
        UserError: The pool has a split `query` or `gallery`.
    """
    if "query" in splits or "gallery" in splits:
        raise UserError(
            f"pool: dataset {dataset} holds query and gallery images: pre-training on them would leak the test; give a "
            "folder of its training images"
        )


def _pretrain(
    config: Pretrain,
    backbone: Backbone,
    seed: int,
    resources: Resources,
    stopping: MedianStopping | None,
    context: StageContext,
) -> dict[str, Any]:
    store = ImageStore(context.input("pool"))
    refuse_test_images(store.manifest["dataset"], store.manifest["counts"])
    chosen = (
        subset_rows(store, context.input("subset")) if "subset" in context.artifact.inputs else np.arange(len(store))
    )
    weights, started = initial_weights.prepare(context, backbone)
    batches = ShufflePlan(chosen, config.batch_size, seed)
    epoch = batches.steps_per_epoch if config.steps is None else len(store) // config.batch_size
    length = config.length(epoch)
    probe = on_target(context, config, backbone, length)
    header = header_of(context, config.method, length)
    training = training_on(
        context,
        store,
        config,
        seed,
        plan=batches,
        epochs=length,
        steps_per_epoch=epoch,
        build=_Build(config, backbone, seed, epoch, weights),
        save=partial(_save, context.folder / WEIGHTS, header),
        accumulate=config.accumulate,
        probe=Judged(probe, stopping, context.folder / METRICS) if probe and stopping else probe,
    )
    context.run.dataset("pool", store.fingerprint, str(store.directory), {"images": len(chosen)}, "pretrain")
    context.resolved(
        resolved(config, backbone, epoch),
        {"probe_every": probe.every, "probe_images": len(probe.probe.rows)} if probe else {},
    )
    facts = fit(context, training, resources, _watch(config, backbone, epoch, probe is not None))
    context.run.file(context.folder / WEIGHTS, "weights")
    return {"images": len(chosen), **facts, **started}


def _watch(config: Pretrain, backbone: Backbone, steps_per_epoch: int, probed: bool) -> Watch:
    """Return the watch over a run's rows: for a collapse at any time, and at the end for what was not learned."""
    entry, recipe = METHODS[config.method], config.recipe(backbone, steps_per_epoch)
    collapse = entry.watch(config, recipe)
    epochs = config.length(steps_per_epoch)
    learning = LearningWatch(round(epochs * steps_per_epoch), epochs, probed, entry.chance(recipe))

    def watch(row: Mapping[str, float]) -> str | None:
        return "; ".join(filter(None, (collapse(row), learning(row)))) or None

    return watch


@dataclass(frozen=True)
class _Build:
    """Builds the method on a worker."""

    config: Pretrain
    backbone: Backbone
    seed: int
    steps_per_epoch: int
    weights: Start | None

    def __call__(self, device: torch.device) -> tuple[Pretraining, Callable[..., Any]]:
        recipe = self.config.recipe(self.backbone, self.steps_per_epoch)
        checkpointed = self.config.checkpoint_activations
        trained = network(self.backbone, recipe.drop_path, self.weights, checkpointed)
        follower = network(self.backbone)
        setup = MethodSetup(self.config, recipe, self.steps_per_epoch, fresh=self.weights is None)
        method = METHODS[self.config.method].build(trained, follower, setup)
        crops = crops_of(self.config, recipe, self.backbone.img_size, self.backbone.patch)
        return method.to(device), partial(augmented, crops, self.seed)


def _save(path: Path, header: dict[str, Any], method: Pretraining) -> None:
    save_backbone(path, method.backbone, IMAGENET_MEAN, IMAGENET_STD, **header)
