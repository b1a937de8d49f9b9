"""Parts shared by the training stages: planning their artifacts, and building the training from their sections."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from rayreid.config import Adapt, Backbone, Finetune, Pretrain
from rayreid.data.batch import ImageBatch
from rayreid.data.sampling.batch_plans import BatchPlan
from rayreid.data.store.store import ImageStore
from rayreid.execution.production import StageContext, identity
from rayreid.execution.trainer import Training
from rayreid.stages.training import initial_weights
from rayreid.storage.artifacts import Artifact, Job


def plan_training(
    stage: str,
    version: int,
    images: Mapping[str, Artifact],
    weights: Artifact | None,
    config: Pretrain | Finetune | Adapt,
    backbone: Backbone,
    seed: int,
    job: Job,
    auxiliary: Mapping[str, Artifact] | None = None,
) -> Artifact:
    """Plan weights that a stage trains.

    Args:
        stage: The stage, and the section of its configuration.
        version: The stage's version.
        images: Artifacts with the training images, by role.
        weights: An earlier stage's weights to start from; None: those that `backbone.weights` names, or fresh ones.
        config: The stage's section.
        backbone: The network.
        seed: The experiment's seed.
        job: Runs the training.
        auxiliary: Artifacts for monitoring the training.

    Raises:
        UserError: The file that `backbone.weights` names does not exist.
    """
    inputs = {**images, **({"weights": weights} if weights else {})}
    start = None if weights else initial_weights.identifier(backbone)
    fields = identity(**{stage: config}, backbone=backbone, seed=seed, start=start)
    root = next(iter(images.values())).root
    return Artifact(root, stage, version, fields, inputs, job, auxiliary=auxiliary or {})


def training_on(
    context: StageContext,
    store: ImageStore,
    config: Pretrain | Finetune | Adapt,
    seed: int,
    *,
    plan: BatchPlan,
    epochs: float | None = None,
    steps_per_epoch: int | None = None,
    build: Callable[[torch.device], tuple[Any, Callable[..., Any]]],
    save: Callable[[Any], None],
    accumulate: int = 1,
    probe: Callable[..., Any] | None = None,
    feed: Callable[..., Any] | None = None,
) -> Training:
    """Return the training that a stage's section describes; see `Training` for the keyword arguments.

    Args:
        context: Context of the running stage.
        store: The images.
        config: The stage's section: length, precision, checkpoints.
        seed: The experiment's seed.
    """
    return Training(
        folder=context.folder,
        store=store.directory,
        plan=plan,
        build=build,
        save=save,
        epochs=config.epochs if epochs is None else epochs,
        steps_per_epoch=steps_per_epoch,
        accumulate=accumulate,
        precision=config.precision,
        compile=config.compile,
        deterministic=config.deterministic,
        seed=seed,
        checkpoint_minutes=config.checkpoint_minutes,
        keep_checkpoints=config.keep_checkpoints,
        keep_every_epochs=config.keep_every_epochs,
        probe=probe,
        feed=feed,
    )


def header_of(context: StageContext, method: str, epochs: float) -> dict[str, Any]:
    """Return the metadata of the weights file about its origin."""
    return {"method": method, "epochs": epochs, "artifact": str(context.artifact)}


class Augmentation(Protocol):
    """A random transform of images, the same for the same seed, epoch and key."""

    def __call__(self, images: ImageBatch, keys: Sequence[str], epoch: int, seed: int, /) -> Any:
        """Return what the method trains on."""


def augmented(
    augment: Augmentation, seed: int, images: ImageBatch, keys: Sequence[str], epoch: int, rows: np.ndarray
) -> Any:
    """Prepare a batch for a method that uses only images; the loop passes all but the first two arguments."""
    return augment(images, keys, epoch, seed)
