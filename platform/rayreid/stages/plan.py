"""Which stage needs which artifact: the graph of one experiment, known before anything runs."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayreid.artifacts import Artifact, data_path, lineage
from rayreid.config import PATCH, Backbone, Experiment, Finetune, Pretrain, Resources, Source
from rayreid.data.datasets import Dataset
from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.weights import load_weights
from rayreid.selection.filelist import read_list
from rayreid.stages import evaluate, finetune, ingest, pretrain, select
from rayreid.stages.ranking import check_proxies, needs_source, needs_target_proxies, plan_subset

ROLES = (
    "pool",
    "target",
    "source_proxy",
    "target_proxy",
    "features",
    "target_features",
    "scores",
    "priority",
    "subset",
    "weights",
    "model",
    "metrics",
)
"""The artifacts of an experiment, in the order in which they are made. With `score.targets` each of these has a target
and a target proxy of its own: `target.<name>`, `target_proxy.<name>`."""

STAGE_ROLE = {
    "ingest": ("pool", "target"),
    "pretrain": ("weights",),
    "score": ("scores", "priority"),
    "select": ("subset",),
    "finetune": ("model",),
    "evaluate": ("metrics",),
}
"""What a stage's own command makes."""


def plan(experiment: Experiment, root: Path) -> dict[str, Artifact]:
    """The artifacts of one experiment by role; those that it has no use for are absent.

    A fraction of 1 needs no subset, no scores and no proxies; `pretrain.method: none` needs no pool.

    Raises:
        UserError: a file that the configuration names does not exist.
    """
    e = experiment
    graph = {"target": ingest.plan(root, e.target)}
    if e.pretrain.method != "none":
        graph["pool"] = ingest.plan(root, e.pool)
        if not e.select.whole:
            graph.update(plan_subset(e, graph["pool"], graph["target"]))
        graph["weights"] = pretrain.plan(
            graph["pool"], graph.get("subset"), e.pretrain, e.backbone, e.seed, e.resources
        )
    graph["model"] = finetune.plan(graph["target"], graph.get("weights"), e.finetune, e.backbone, e.seed, e.resources)
    graph["metrics"] = evaluate.plan(graph["target"], graph["model"], e.evaluate)
    return dict(sorted(graph.items(), key=lambda item: ROLES.index(item[0].partition(".")[0])))


def shared(plans: Mapping[str, Mapping[str, Artifact]]) -> list[Artifact]:
    """Artifacts that several experiments stand on, inputs first: they run once, ahead of them."""
    users: dict[str, int] = {}
    found: dict[str, Artifact] = {}
    for graph in plans.values():
        for identifier, artifact in lineage(graph).items():
            users[identifier] = users.get(identifier, 0) + 1
            found.setdefault(identifier, artifact)
    return [artifact for identifier, artifact in found.items() if users[identifier] > 1]


def check(experiments: Iterable[Experiment], plans: Mapping[str, Mapping[str, Artifact]]) -> None:
    """Refuse before anything starts what could only fail later.

    Raises:
        UserError: a dataset that is not there or empty, a target without one of its splits, a pool that holds test
            images, an unknown backbone or stem, an image size that the patch does not divide, weights of another
            architecture, a batch that cannot be filled, or dealt to workers and micro-batches, a file list that
            cannot be read, a proxy that is not pre-trained, or said in two ways.
    """
    experiments = list(experiments)
    for backbone in {str(b): b for e in experiments for b in (e.backbone, e.proxy.backbone)}.values():
        _check_backbone(backbone)
    for e in experiments:
        for backbone, pretraining in ((e.backbone, e.pretrain), (e.proxy.backbone, e.proxy.pretrain)):
            _check_pretraining(backbone, pretraining, e.resources)
        if needs_source(e):
            check_proxies(e)
        if e.select.strategy == "list" and not e.select.whole and e.pretrain.method != "none":
            read_list(select.list_file(e.select))
    _check_sources(experiments, plans)


@dataclass(frozen=True)
class _Contents:
    """What is known of a dataset ahead of a run.

    Attributes:
        images: number per split; None for a pool that is not stored yet: listing millions of files only to count them
            would take minutes, and the stage itself refuses what it cannot do.
        identities: number in the split train.
    """

    images: Mapping[str, int] | None = None
    identities: int = 0


def _check_sources(experiments: Sequence[Experiment], plans: Mapping[str, Mapping[str, Artifact]]) -> None:
    """What depends on the datasets, those that some experiment uses."""
    root = next(iter(next(iter(plans.values())).values())).root
    known: dict[tuple[str, str], _Contents] = {}
    for e in experiments:
        target = _contents("target", e.target, root, known)
        _check_identities(e, target)
        for one in e.score.targets if needs_target_proxies(e) else ():
            if one.source is not None:
                role = f"score target {one.label}"
                _check_batch_of("proxy.finetune", e.proxy.finetune, role, _contents(role, one.source, root, known))
        if e.pretrain.method != "none":
            _check_images(e, _contents("pool", e.pool, root, known))


def _contents(role: str, source: Source, root: Path, known: dict[tuple[str, str], _Contents]) -> _Contents:
    """Look into a dataset, into each once."""
    artifact = ingest.plan(root, source)
    if (role, artifact.id) not in known:
        known[role, artifact.id] = _look(role, source, artifact)
    return known[role, artifact.id]


def _look(role: str, source: Source, artifact: Artifact) -> _Contents:
    if artifact.complete:
        manifest = json.loads((artifact.path / "manifest.json").read_text(encoding="utf-8"))
        contents = _Contents(manifest["counts"], manifest["identities"].get("train", 0))
    else:
        contents = _listed(role, ingest.open_source(source))
    if role == "pool":
        pretrain.refuse_test_images(source.dataset, contents.images or ())
    if role == "target":
        _check_splits(source.dataset, contents)
    return contents


def _listed(role: str, dataset: Dataset) -> _Contents:
    """From the dataset's own listing; of a pool that is not labelled only the first image is asked for."""
    records = iter(dataset.records())
    first = next(records, None)
    if first is None:
        raise UserError(f"{role}: dataset {dataset.name} has no image")
    if role == "pool" and first.split == "pool":
        return _Contents()
    images, identities = Counter([first.split]), {(first.split, first.pid)}
    for record in records:
        images[record.split] += 1
        identities.add((record.split, record.pid))
    return _Contents(images, sum(split == "train" and pid >= 0 for split, pid in identities))


def _check_splits(name: str, target: _Contents) -> None:
    """Without one of its splits a target would fail only after everything has been trained."""
    for split in ("train", "query", "gallery"):
        if not (target.images or {}).get(split):
            raise UserError(
                f"target: dataset {name} has no image of split {split!r}; it needs train, query and gallery"
            )


def _check_identities(e: Experiment, target: _Contents) -> None:
    """A batch of more identities than there are."""
    _check_batch_of("finetune", e.finetune, "target", target)
    if needs_target_proxies(e) and not e.score.targets and e.proxy.target is None:
        _check_batch_of("proxy.finetune", e.proxy.finetune, "target", target)


def _check_batch_of(key: str, config: Finetune, role: str, target: _Contents) -> None:
    if config.identities > target.identities:
        raise UserError(
            f"{key}.identities={config.identities}, but the {role}'s split train has only {target.identities} "
            "identities; lower it"
        )


def _check_images(e: Experiment, pool: _Contents) -> None:
    """A subset or a batch of more images than there are."""
    if pool.images is None:
        return
    stored = sum(pool.images.values())
    if (e.select.count or 0) > stored:
        raise UserError(f"select.count={e.select.count}, but the pool has only {stored} images; lower it")
    _check_batch("pretrain", e.pretrain, e.select.count or round(e.select.fraction * stored))
    if needs_source(e) and e.proxy.source is None:
        _check_batch("proxy.pretrain", e.proxy.pretrain, stored)


def _check_batch(key: str, config: Pretrain, images: int) -> None:
    if config.batch_size > images:
        raise UserError(f"{key}.batch_size={config.batch_size}, but it is trained on {images} images; lower it")


def _check_pretraining(backbone: Backbone, config: Pretrain, resources: Resources) -> None:
    """What would otherwise be refused only by a worker."""
    if config.method == "none":
        return
    if backbone.name.startswith("vit") and any(side % PATCH for side in config.crop_sizes(backbone.img_size)[1]):
        raise UserError(f"pretrain.local_size={list(config.local_size)}: give multiples of the patch, {PATCH}")
    parts = config.accumulate * (1 if resources.workers == "auto" else resources.workers)
    if config.batch_size % parts:
        raise UserError(
            f"pretrain.batch_size={config.batch_size} cannot be dealt to pretrain.accumulate={config.accumulate} "
            f"micro-batches on resources.workers={resources.workers}; make it a multiple of {parts}"
        )


def _check_backbone(config: Backbone) -> None:
    backbone = build_backbone(config.name, config.stem, config.img_size, config.depth)
    if config.weights:
        load_weights(backbone, data_path(config.weights))
