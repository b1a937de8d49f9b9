"""The proxies that score a pool: θs and one θt per target, trained here or taken from checkpoints that the user has."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rayreid.artifacts import Artifact, data_path
from rayreid.config import Backbone, Checkpoint, Proxy, Resources
from rayreid.data.augment import IMAGENET_MEAN, IMAGENET_STD
from rayreid.data.shards import checksum
from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.weights import LoadReport, load_weights, save_backbone
from rayreid.stages import finetune, pretrain
from rayreid.stages.production import Work, identity

VERSION = 1


def plan_source(pool: Artifact, config: Proxy, resources: Resources) -> Artifact:
    """θs: pre-trained on the pool, or the user's own."""
    if config.source is not None:
        return _plan_adoption(pool.root, "source", config.source, config.backbone)
    return pretrain.plan(pool, None, config.pretrain, config.backbone, config.seed, resources)


def plan_target(
    target: Artifact | None, source: Artifact, checkpoint: Checkpoint | None, config: Proxy, resources: Resources
) -> Artifact:
    """θt: θs fine-tuned on a target, or the user's own."""
    if checkpoint is not None:
        return _plan_adoption(source.root, "target", checkpoint, config.backbone)
    if target is None:
        raise ValueError("a target proxy needs a target or a checkpoint")
    return finetune.plan(target, source, config.finetune, config.backbone, config.seed, resources)


def check(config: Proxy, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Refuse checkpoints that are not there or of another architecture than `proxy.backbone`; by their keys.

    Raises:
        UserError: one of them.
    """
    for key, checkpoint in checkpoints.items():
        b = config.backbone
        _load(checkpoint, b)
        same = [other for other in checkpoints if other != key and _file(checkpoints[other]) == _file(checkpoint)]
        if same and "proxy.source" in (key, *same):
            raise UserError(f"{key} and {same[0]} are the same file: every image's score would be 1")


def _plan_adoption(root: Path, role: str, checkpoint: Checkpoint, backbone: Backbone) -> Artifact:
    path = _file(checkpoint)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file (of a {role} proxy)")
    fields = identity(backbone=backbone, checksum=checksum(path), mean=checkpoint.mean, std=checkpoint.std)
    name = pretrain.WEIGHTS if role == "source" else finetune.WEIGHTS
    return Artifact(root, "proxy", VERSION, {**fields, "role": role}, job=partial(_adopt, checkpoint, backbone, name))


def _adopt(checkpoint: Checkpoint, config: Backbone, name: str, work: Work) -> dict[str, Any]:
    """Write the user's checkpoint as a weights file of ours, with what it needs of its images."""
    backbone, report = _load(checkpoint, config)
    mean, std = _normalisation(checkpoint, report)
    save_backbone(work.folder / name, backbone, mean, std, method="given", artifact=str(work.artifact))
    work.run.params({"resolved.mean": mean, "resolved.std": std, "file": _file(checkpoint)})
    return {"file": str(_file(checkpoint)), "format": report.format, "mean": list(mean), "std": list(std)}


def _load(checkpoint: Checkpoint, config: Backbone) -> tuple[Any, LoadReport]:
    backbone = build_backbone(config.name, config.stem, config.img_size, config.depth)
    return backbone, load_weights(backbone, _file(checkpoint))


def _normalisation(checkpoint: Checkpoint, report: LoadReport) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel: as the user says, as our header says, or as is the custom of the file's kind."""
    custom = (finetune.MEAN, finetune.STD) if report.format == "reid" else (IMAGENET_MEAN, IMAGENET_STD)
    known = (report.header.get("mean", custom[0]), report.header.get("std", custom[1]))
    said = (checkpoint.mean, checkpoint.std)
    mean, std = (tuple(of_file) if own == "auto" else tuple(own) for own, of_file in zip(said, known, strict=True))
    return mean, std


def _file(checkpoint: Checkpoint) -> Path:
    return data_path(checkpoint.weights)
