"""Which stage needs which artifact: the graph of one experiment, known before anything runs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rayreid.artifacts import Artifact, data_path, lineage
from rayreid.config import PATCH, Backbone, Experiment, Pretrain, Resources
from rayreid.data.datasets import Dataset
from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.weights import load_weights
from rayreid.stages import evaluate, finetune, ingest, pretrain, score, select
from rayreid.stages.provenance import provenance_of

ROLES = ("pool", "target", "source_proxy", "target_proxy", "scores", "subset", "weights", "model", "metrics")
"""The artifacts of an experiment, in the order in which they are made."""

STAGE_ROLE = {
    "ingest": ("pool", "target"),
    "pretrain": ("weights",),
    "score": ("scores",),
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
            graph.update(_subset(e, graph["pool"], graph["target"]))
        graph["weights"] = pretrain.plan(
            graph["pool"], graph.get("subset"), e.pretrain, e.backbone, e.seed, e.resources
        )
    graph["model"] = finetune.plan(graph["target"], graph.get("weights"), e.finetune, e.backbone, e.seed, e.resources)
    graph["metrics"] = evaluate.plan(graph["target"], graph["model"], e.evaluate)
    return {role: graph[role] for role in ROLES if role in graph}


def _subset(e: Experiment, pool: Artifact, target: Artifact) -> dict[str, Artifact]:
    provenance = provenance_of(e.pool)
    made = {}
    if e.select.strategy == "cfs":
        proxy = e.proxy
        made["source_proxy"] = pretrain.plan(pool, None, proxy.pretrain, proxy.backbone, proxy.seed, e.resources)
        made["target_proxy"] = finetune.plan(
            target, made["source_proxy"], proxy.finetune, proxy.backbone, proxy.seed, e.resources
        )
        made["scores"] = score.plan(pool, made["source_proxy"], made["target_proxy"], e.score, provenance)
    made["subset"] = select.plan(pool, made.get("scores"), e.select, e.seed, provenance)
    return made


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
        UserError: a dataset that is not there, a target without one of its splits, an unknown backbone or stem, an
            image size that the patch does not divide, weights of another architecture, a batch that cannot be dealt
            to workers and micro-batches, a proxy that is not pre-trained.
    """
    experiments = list(experiments)
    for backbone in {str(b): b for e in experiments for b in (e.backbone, e.proxy.backbone)}.values():
        _check_backbone(backbone)
    for e in experiments:
        for backbone, pretraining in ((e.backbone, e.pretrain), (e.proxy.backbone, e.proxy.pretrain)):
            _check_pretraining(backbone, pretraining, e.resources)
        needs_scores = e.select.strategy == "cfs" and not e.select.whole and e.pretrain.method != "none"
        if needs_scores and e.proxy.pretrain.method == "none":
            raise UserError("proxy.pretrain.method is none: the strategy cfs needs a pre-trained source proxy")
    _check_sources(experiments, plans)


def _check_sources(experiments: Sequence[Experiment], plans: Mapping[str, Mapping[str, Artifact]]) -> None:
    missing = {a.id for graph in plans.values() for a in lineage(graph).values() if not a.complete}
    root = next(iter(next(iter(plans.values())).values())).root
    pools = {ingest.plan(root, e.pool).id: e.pool for e in experiments}
    targets = {ingest.plan(root, e.target).id: e.target for e in experiments}
    for identifier, source in {**pools, **targets}.items():
        if identifier in missing:
            dataset = ingest.open_source(source)
            if identifier in targets:
                _check_splits(dataset)


def _check_splits(target: Dataset) -> None:
    """Without one of its splits a target would fail only after everything has been trained."""
    present = {record.split for record in target.records()}
    for split in ("train", "query", "gallery"):
        if split not in present:
            raise UserError(
                f"target: dataset {target.name} has no image of split {split!r}; it needs train, query and gallery"
            )


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
