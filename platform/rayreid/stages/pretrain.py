"""Stage *pretrain*: pool or subset → backbone weights, by DINO on Ray Train."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayreid.artifacts import Artifact, data_path
from rayreid.config import Backbone, Pretrain, Resources
from rayreid.data.augment import IMAGENET_MEAN, IMAGENET_STD, MultiCrop
from rayreid.data.batch import ImageBatch
from rayreid.data.sampling import ShufflePlan
from rayreid.data.shards import checksum
from rayreid.data.store import ImageStore
from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.weights import load_weights, save_backbone
from rayreid.pretraining.dino import DINO
from rayreid.stages.production import Work, identity
from rayreid.stages.subset import subset_rows
from rayreid.stages.trainer import Training, fit

VERSION = 1
WEIGHTS = "backbone.safetensors"


def plan(
    pool: Artifact,
    subset: Artifact | None,
    config: Pretrain,
    backbone: Backbone,
    seed: int,
    resources: Resources,
) -> Artifact:
    """Weights of a backbone pre-trained on a pool, or on a subset of it."""
    inputs = {"pool": pool, **({"subset": subset} if subset else {})}
    fields = identity(pretrain=config, backbone=backbone, seed=seed, start=start_checksum(backbone))
    job = partial(_pretrain, config, backbone, seed, resources)
    return Artifact(pool.root, "pretrain", VERSION, fields, inputs, job)


def refuse_test_images(dataset: str, splits: Container[str]) -> None:
    """A pool may not hold the images that a target is evaluated on.

    Raises:
        UserError: it does.
    """
    if "query" in splits or "gallery" in splits:
        raise UserError(
            f"pool: dataset {dataset} holds query and gallery images: pre-training on them would leak the test; give a "
            "folder of its training images"
        )


def start_checksum(backbone: Backbone) -> str | None:
    """What identifies the checkpoint that a backbone starts from.

    Raises:
        UserError: it does not exist.
    """
    if backbone.weights is None:
        return None
    path = data_path(backbone.weights)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file (backbone.weights)")
    return checksum(path)


def _pretrain(config: Pretrain, backbone: Backbone, seed: int, resources: Resources, work: Work) -> dict[str, Any]:
    store = ImageStore(work.input("pool"))
    refuse_test_images(store.manifest["dataset"], store.manifest["counts"])
    chosen = subset_rows(store, work.input("subset")) if "subset" in work.artifact.inputs else np.arange(len(store))
    # Made absolute here: a worker's current folder is another one.
    start = data_path(backbone.weights) if backbone.weights else None
    steps = ShufflePlan(chosen, config.batch_size, seed)
    header = {"method": config.method, "epochs": config.epochs, "artifact": str(work.artifact)}
    training = Training(
        folder=work.folder,
        store=store.directory,
        plan=steps,
        build=_Build(config, backbone, seed, steps.steps_per_epoch, start),
        save=partial(_save, work.folder / WEIGHTS, header),
        epochs=config.epochs,
        accumulate=config.accumulate,
        precision=config.precision,
        seed=seed,
        checkpoint_minutes=config.checkpoint_minutes,
    )
    work.run.dataset("pool", store.fingerprint, str(store.directory), {"images": len(chosen)}, "pretrain")
    _, local_size = config.crop_sizes(backbone.img_size)
    resolved = {"lr": config.peak_lr, "warmup_epochs": config.warmup, "local_size": local_size}
    work.run.params({f"resolved.{name}": value for name, value in resolved.items()})
    facts = fit(work, training, resources)
    work.run.file(work.folder / WEIGHTS, "weights")
    return {"images": len(chosen), **facts}


@dataclass(frozen=True)
class _Build:
    """Builds the method on a worker."""

    config: Pretrain
    backbone: Backbone
    seed: int
    steps_per_epoch: int
    start: Path | None

    def __call__(self, device: torch.device) -> tuple[DINO, Callable[..., Any]]:
        c, b = self.config, self.backbone
        student = build_backbone(b.name, b.stem, b.img_size, b.depth, drop_path=c.drop_path)
        teacher = build_backbone(b.name, b.stem, b.img_size, b.depth)
        if self.start is not None:
            load_weights(student, self.start)
        method = DINO(
            student,
            teacher,
            epochs=c.epochs,
            steps_per_epoch=self.steps_per_epoch,
            lr=c.peak_lr,
            out_dim=c.out_dim,
            hidden_dim=c.hidden_dim,
            bottleneck_dim=c.bottleneck_dim,
            min_lr=c.min_lr,
            warmup_epochs=c.warmup,
            weight_decay=c.weight_decay,
            weight_decay_end=c.weight_decay_end,
            teacher_momentum=c.teacher_momentum,
            teacher_temp=c.teacher_temp,
            student_temp=c.student_temp,
            centre_momentum=c.centre_momentum,
            clip=c.clip,
            freeze_last_layer_epochs=c.freeze_last_layer_epochs,
        )
        global_size, local_size = c.crop_sizes(b.img_size)
        crops = MultiCrop(global_size, local_size, c.local_crops, c.global_scale, c.local_scale)
        return method.to(device), partial(_prepare, crops, self.seed)


def _prepare(
    crops: MultiCrop, seed: int, images: ImageBatch, keys: Sequence[str], epoch: int, rows: np.ndarray
) -> list[torch.Tensor]:
    return crops(images, keys, epoch, seed)


def _save(path: Path, header: dict[str, Any], method: DINO) -> None:
    save_backbone(path, method.backbone, IMAGENET_MEAN, IMAGENET_STD, **header)  # type: ignore[arg-type]
