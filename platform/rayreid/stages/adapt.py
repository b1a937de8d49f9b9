"""Stage *adapt*: weights + unlabelled target → ReID model, by cluster contrast on Ray Train (USL and UDA)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rayreid.config import Adapt, Backbone, Resources
from rayreid.data.augment.reid_transforms import Interpolation, ReIDTest, ReIDTrain
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.probe import extract
from rayreid.execution.production import StageContext
from rayreid.execution.trainer import Log, fit
from rayreid.models.neck import Neck
from rayreid.models.weights import save_backbone
from rayreid.reid.cluster_contrast import ClusterContrast
from rayreid.reid.pseudo_feed import PseudoLabelFeed, PseudoLabelPlan
from rayreid.reid.pseudo_labels import Clustering, PseudoLabels
from rayreid.stages import finetune, pretrain
from rayreid.stages.training import initial_weights, pseudo_label_figures
from rayreid.stages.training.initial_weights import Start, network
from rayreid.stages.training.trained_weights import augmented, header_of, plan_training, training_on
from rayreid.stages.training.validation import Look
from rayreid.storage.artifacts import Artifact
from rayreid.training.loop import Batch, resolve_precision

VERSION = 2
WEIGHTS = finetune.WEIGHTS
LABELS = "labels"
MEAN = STD = (0.5, 0.5, 0.5)
INTERPOLATION: Interpolation = "bicubic"
ERASED_AREA = (0.02, 0.4)
ERASED_FILL = (0.485, 0.456, 0.406)  # in the normalised range, as published


def plan(
    target: Artifact,
    weights: Artifact | None,
    config: Adapt,
    backbone: Backbone,
    seed: int,
    resources: Resources,
) -> Artifact:
    """Plan a ReID model: a backbone adapted to a target, from pre-trained or fine-tuned weights, or a checkpoint."""
    job = partial(_adapt, config, backbone, seed, resources)
    return plan_training("adapt", VERSION, {"target": target}, weights, config, backbone, seed, job)


def check_images(config: Adapt, images: int) -> None:
    """Check that a target has enough training images to be clustered, and to give the clusters of a batch.

    Raises:
        UserError: There are fewer images than entries in a neighbour list, or than clusters in a batch.
    """
    if images < config.k1:
        raise UserError(
            f"adapt.k1={config.k1}, but the target's split train has only {images} images, which would all be "
            "neighbours of one another; lower it well below that"
        )
    if images < config.clusters:
        raise UserError(
            f"adapt.clusters={config.clusters}, but the target's split train has only {images} images to find a "
            "batch's clusters among; lower it well below that"
        )


def _adapt(config: Adapt, backbone: Backbone, seed: int, resources: Resources, context: StageContext) -> dict[str, Any]:
    store = ImageStore(context.input("target"))
    rows = store.rows_of("train")
    check_images(config, len(rows))
    weights, started = initial_weights.prepare(context, backbone, _given(context))
    header = header_of(context, f"cluster contrast, {config.method}", config.epochs)
    c = config
    training = training_on(
        context,
        store,
        c,
        seed,
        plan=PseudoLabelPlan(rows, store.camids[rows], c.clusters, c.instances, c.iterations, seed),
        build=_Build(c, backbone, seed, weights),
        save=partial(_save, context.folder / WEIGHTS, header),
        probe=Look(store.directory, _test(backbone), c.evaluate_every, c.epochs, c.precision),
        feed=_Feeding(c, backbone, store.directory, context.folder / LABELS, seed),
    )
    profile = {"images": len(rows)}
    context.run.dataset("target", store.fingerprint, str(store.directory), profile, "adapt")
    context.resolved({"decay_every": c.decay_epochs})
    facts = fit(context, training, resources, pseudo_label_figures.watch)
    found = pseudo_label_figures.draw(context, store, context.folder / LABELS, c.epochs)
    context.run.file(context.folder / WEIGHTS, "weights")
    return {**profile, **facts, **found, **started}


def _given(context: StageContext) -> Path | None:
    if "weights" not in context.artifact.inputs:
        return None
    names = {"pretrain": pretrain.WEIGHTS, "finetune": finetune.WEIGHTS}
    return context.input("weights") / names[context.artifact.inputs["weights"].stage]


def _test(backbone: Backbone) -> ReIDTest:
    return ReIDTest(backbone.img_size, MEAN, STD, INTERPOLATION)


@dataclass(frozen=True)
class _Build:
    """Builds the method on a worker."""

    config: Adapt
    backbone: Backbone
    seed: int
    weights: Start | None

    def __call__(self, device: torch.device) -> tuple[ClusterContrast, Callable[..., Any]]:
        c, b = self.config, self.backbone
        backbone = network(b, c.drop_path, self.weights, c.checkpoint_activations)
        method = ClusterContrast(
            backbone,
            steps_per_epoch=c.iterations,
            lr=c.lr,
            decay_every=c.decay_epochs,
            weight_decay=c.weight_decay,
            temperature=c.temperature,
            memory_momentum=c.memory_momentum,
            variant=c.memory,
        )
        transform = ReIDTrain(
            b.img_size,
            MEAN,
            STD,
            erasing=c.erasing,
            padding=c.padding,
            interpolation=INTERPOLATION,
            erasing_area=ERASED_AREA,
            erasing_fill=ERASED_FILL,
        )
        return method.to(device), partial(augmented, transform, self.seed)


@dataclass(frozen=True)
class _Feeding:
    """Builds the iterator of batches for the loop, on a worker."""

    config: Adapt
    backbone: Backbone
    store: Path
    labels: Path
    seed: int

    def __call__(
        self, method: ClusterContrast, prepare: Callable[..., Any], device: torch.device, threads: int, log: Log
    ) -> Callable[[int], Iterator[Batch]]:
        c, store = self.config, ImageStore(self.store)
        rows = store.rows_of("train")
        precision = resolve_precision(c.precision, device)
        return PseudoLabelFeed(
            method,
            store,
            PseudoLabelPlan(rows, store.camids[rows], c.clusters, c.instances, c.iterations, self.seed),
            PseudoLabels(
                self.labels,
                rows,
                store.pids[rows],
                Clustering(c.k1, c.k2, None if c.eps == "auto" else c.eps, c.min_samples, c.search),
                c.clusters,
            ),
            prepare,
            lambda backbone: extract(backbone, store, rows, _test(self.backbone), device, precision, threads),
            device,
            log,
            threads,
        )


def _save(path: Path, header: Mapping[str, Any], method: ClusterContrast) -> None:
    neck = Neck(*method.bottleneck.scale_and_shift())
    save_backbone(path, method.base, MEAN, STD, neck, interpolation=INTERPOLATION, **header)
