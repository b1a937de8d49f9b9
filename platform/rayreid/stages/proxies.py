"""The proxies that score a pool: θs and one θt per target, trained here or taken from the user's checkpoints."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rayreid.config import Backbone, Checkpoint, Proxy, Resources
from rayreid.errors import UserError
from rayreid.execution.production import StageContext, identity
from rayreid.models.normalisation import IMAGENET, NORMALISED
from rayreid.models.report import LoadReport
from rayreid.models.weights import load_weights, save_backbone
from rayreid.stages import finetune, pretrain
from rayreid.stages.training import initial_weights
from rayreid.storage.artifacts import Artifact

VERSION = 1


def plan_source(pool: Artifact, config: Proxy, resources: Resources, target: Artifact | None = None) -> Artifact:
    """Return θs: pre-trained on the pool (and probed on a target, if given), or adopted from a user's checkpoint."""
    if config.source is not None:
        return plan_adoption(pool.root, "source", config.source, config.backbone)
    return pretrain.plan(pool, None, config.pretrain, config.backbone, config.seed, resources, target)


def plan_target(
    target: Artifact | None, source: Artifact, checkpoint: Checkpoint | None, config: Proxy, resources: Resources
) -> Artifact:
    """Return θt: θs fine-tuned on a target, or adopted from the user's checkpoint."""
    if checkpoint is not None:
        return plan_adoption(source.root, "target", checkpoint, config.backbone)
    if target is None:
        raise ValueError("a target proxy needs a target or a checkpoint")
    return finetune.plan(target, source, config.finetune, config.backbone, config.seed, resources)


def check(backbone: Backbone, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Refuse checkpoints that do not exist, or that have another architecture than this backbone.

    Args:
        backbone: The proxies' backbone.
        checkpoints: The checkpoints, by their keys in the experiment file.

    Raises:
        UserError: A checkpoint does not exist or does not fit, or θs and θt are the same file.
    """
    for key, checkpoint in checkpoints.items():
        initial_weights.check(_started(checkpoint, backbone))
        same = [other for other in checkpoints if other != key and checkpoints[other].weights == checkpoint.weights]
        if same and "proxy.source" in (key, *same):
            raise UserError(f"{key} and {same[0]} are the same file: every image's score would be 1")


def _started(checkpoint: Checkpoint, backbone: Backbone) -> Backbone:
    """Return the proxies' backbone with the checkpoint to start from."""
    return backbone.model_copy(update={"weights": checkpoint.weights, "strict": True})


def plan_adoption(root: Path, role: str, checkpoint: Checkpoint, backbone: Backbone) -> Artifact:
    """Return the artifact of the user's checkpoint in our format, as a pre-trained source or a fine-tuned target."""
    content = initial_weights.identifier(_started(checkpoint, backbone))
    fields = identity(backbone=backbone, checksum=content, mean=checkpoint.mean, std=checkpoint.std)
    name = pretrain.WEIGHTS if role == "source" else finetune.WEIGHTS
    return Artifact(root, "proxy", VERSION, {**fields, "role": role}, job=partial(_adopt, checkpoint, backbone, name))


def _adopt(checkpoint: Checkpoint, config: Backbone, name: str, context: StageContext) -> dict[str, Any]:
    """Write the user's checkpoint as a weights file in our format, with the normalisation of its images."""
    backbone, file = initial_weights.network(config), initial_weights.source(_started(checkpoint, config))
    assert file is not None
    report = load_weights(backbone, file)
    mean, std = _normalisation(checkpoint, report)
    save_backbone(context.folder / name, backbone, mean, std, method="given", artifact=str(context.artifact))
    context.run.params({"resolved.mean": mean, "resolved.std": std, "file": file})
    return {"file": str(file), "format": report.format, "mean": list(mean), "std": list(std)}


def _normalisation(checkpoint: Checkpoint, report: LoadReport) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel: the user's, else the file's, else those usual for the file's format."""
    custom = NORMALISED.get(report.format, IMAGENET)
    known = {"mean": custom[0], "std": custom[1], **report.facts, **report.header}
    said = {"mean": checkpoint.mean, "std": checkpoint.std}
    mean, std = (tuple(known[name] if own == "auto" else own) for name, own in said.items())
    return mean, std
