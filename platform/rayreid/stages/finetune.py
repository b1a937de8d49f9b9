"""Stage *finetune*: backbone weights + labelled target → ReID model, supervised, on Ray Train."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayreid.config import Backbone, Finetune, Resources
from rayreid.data.augment.reid_transforms import ReIDTest, ReIDTrain
from rayreid.data.augment.upload import upload
from rayreid.data.batch import ImageBatch
from rayreid.data.sampling.balanced import BalancedPlan
from rayreid.data.sampling.batch_plans import BatchPlan, IdentityPlan, ShufflePlan
from rayreid.data.sampling.camera import CameraPlan
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.execution.production import StageContext
from rayreid.execution.trainer import fit
from rayreid.models.neck import Neck
from rayreid.models.weights import BEST, save_backbone
from rayreid.reid.alike import AlikeWatch
from rayreid.reid.supervised import SupervisedReID
from rayreid.stages import pretrain
from rayreid.stages.training import initial_weights
from rayreid.stages.training.initial_weights import Start, network
from rayreid.stages.training.trained_weights import header_of, plan_training, training_on
from rayreid.stages.training.validation import Best, Look
from rayreid.storage.artifacts import Artifact

_LEAST_PATIENCE = 20  # steps for which features must be alike before a warning; a tenth of a longer training
VERSION = 2
WEIGHTS = "model.safetensors"
MEAN = STD = (0.5, 0.5, 0.5)


def plan(
    target: Artifact,
    weights: Artifact | None,
    config: Finetune,
    backbone: Backbone,
    seed: int,
    resources: Resources,
) -> Artifact:
    """Plan a ReID model: a backbone fine-tuned on a target, from pre-trained weights, a checkpoint, or from scratch."""
    job = partial(_finetune, config, backbone, seed, resources)
    return plan_training("finetune", VERSION, {"target": target}, weights, config, backbone, seed, job)


def _finetune(
    config: Finetune, backbone: Backbone, seed: int, resources: Resources, context: StageContext
) -> dict[str, Any]:
    store = ImageStore(context.input("target"))
    rows = labelled_rows(store)
    classes, labels = np.unique(store.pids[rows], return_inverse=True)
    given = context.input("weights") / pretrain.WEIGHTS if "weights" in context.artifact.inputs else None
    weights, started = initial_weights.prepare(context, backbone, given)
    steps = sampling(config, rows, store.pids[rows], store.camids[rows], seed)
    label_of_row = np.full(len(store), -1)
    label_of_row[rows] = labels
    header = header_of(context, "supervised", config.epochs)
    training = training_on(
        context,
        store,
        config,
        seed,
        plan=steps,
        build=_Build(config, backbone, seed, steps.steps_per_epoch, len(classes), weights, label_of_row),
        save=partial(_save, header, context.folder / WEIGHTS),
        probe=_look(config, backbone, store, Best(context.folder / BEST, partial(_save, header))),
    )
    profile = {"images": len(rows), "identities": len(classes)}
    context.run.dataset("target", store.fingerprint, str(store.directory), profile, "finetune")
    context.resolved(
        {"warmup_epochs": config.warmup, "steps_per_epoch": steps.steps_per_epoch, "images_per_step": steps.size}
    )
    patience = max(_LEAST_PATIENCE, steps.steps_per_epoch * config.epochs // 10)
    facts = fit(context, training, resources, AlikeWatch(patience))
    context.run.file(context.folder / WEIGHTS, "weights")
    return {**profile, **facts, **started}


def labelled_rows(store: ImageStore) -> np.ndarray:
    """Return the index rows of the labelled images in the split `train`.

    Raises:
        UserError: There are no labelled images.
    """
    rows = store.rows_of("train")
    rows = rows[store.pids[rows] >= 0]
    if not len(rows):
        raise UserError(f"{store.directory}: the split 'train' holds no labelled image; a target needs one")
    return rows


def sampling(config: Finetune, rows: np.ndarray, pids: np.ndarray, camids: np.ndarray, seed: int) -> BatchPlan:
    """Return the batch plan of the configured sampler, which says which images each step takes.

    Args:
        config: The sampler and P × K.
        rows: Index rows of labelled images, int (N,).
        pids: Their identities, (N,).
        camids: Their cameras, (N,), −1 for unknown.
        seed: Seed of the run.

    Raises:
        UserError: There are not enough identities or images for a batch.
    """
    P, K = config.identities, config.instances
    if config.sampler == "identity":
        return IdentityPlan(rows, pids, P, K, seed)
    if config.sampler == "camera":
        return CameraPlan(rows, pids, camids, P, K, seed)
    if config.sampler == "plain":
        return ShufflePlan(rows, P * K, seed)
    return BalancedPlan(rows, pids, camids, P * K, seed)


def _look(config: Finetune, backbone: Backbone, store: ImageStore, best: Best) -> Look | None:
    """Return a validation that scores like the stage `evaluate`, but in the training's precision; None if disabled."""
    if not config.evaluate_every:
        return None
    transform = ReIDTest(backbone.img_size, MEAN, STD)
    return Look(store.directory, transform, config.evaluate_every, config.epochs, config.precision, best)


@dataclass(frozen=True)
class _Build:
    """Builds the method on a worker."""

    config: Finetune
    backbone: Backbone
    seed: int
    steps_per_epoch: int
    classes: int
    weights: Start | None
    labels: np.ndarray

    def __call__(self, device: torch.device) -> tuple[SupervisedReID, Callable[..., Any]]:
        c, b = self.config, self.backbone
        backbone = network(b, c.drop_path, self.weights, c.checkpoint_activations)
        method = SupervisedReID(
            backbone,
            self.classes,
            epochs=c.epochs,
            steps_per_epoch=self.steps_per_epoch,
            lr=c.lr,
            warmup_epochs=c.warmup,
            weight_decay=c.weight_decay,
            bias_lr_factor=c.bias_lr_factor,
            optimizer=c.optimizer,
            margin=c.margin,
            global_mining=c.global_mining,
            label_smoothing=c.label_smoothing,
            triplet_weight=c.triplet_weight,
            triplet_start_epoch=c.triplet_start_epoch,
            triplet_normalise=c.triplet_normalise,
            layer_decay=c.layer_decay,
            freeze_epochs=c.freeze_epochs,
        )
        transform = ReIDTrain(b.img_size, MEAN, STD, erasing=c.erasing, padding=c.padding)
        return method.to(device), partial(_prepare, transform, self.seed, self.labels, device)


def _prepare(
    transform: ReIDTrain,
    seed: int,
    labels: np.ndarray,
    device: torch.device,
    images: ImageBatch,
    keys: Sequence[str],
    epoch: int,
    rows: np.ndarray,
) -> tuple[torch.Tensor, torch.Tensor]:
    return transform(images, keys, epoch, seed), upload([labels[rows]], device)[0]


def _save(header: Mapping[str, Any], path: Path, method: SupervisedReID, **facts: Any) -> None:
    bnneck = Neck(*method.bottleneck.scale_and_shift())
    save_backbone(path, method.base, MEAN, STD, bnneck=bnneck, **{**header, **facts})
