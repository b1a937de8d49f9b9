"""Which stage needs which artifact: the graph of one experiment, known before anything runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rayreid.artifacts import Artifact, lineage
from rayreid.cluster import training_share
from rayreid.config import PATCH, Backbone, Experiment, Pretrain, Proxy
from rayreid.errors import UserError
from rayreid.evaluation.probe import NOTHING_TO_FIND
from rayreid.selection.filelist import read_list
from rayreid.stages import adapt, evaluate, finetune, ingest, pretrain, score, select, start
from rayreid.stages.contents import Contents, Datasets
from rayreid.stages.provenance import provenance_of

ROLES = (
    "pool",
    "target",
    "source",
    "source_proxy",
    "target_proxy",
    "scores",
    "subset",
    "weights",
    "model",
    "adapted",
    "metrics",
)
"""The artifacts of an experiment, in the order in which they are made."""

STAGE_ROLE = {
    "ingest": ("pool", "target", "source"),
    "pretrain": ("weights",),
    "score": ("scores",),
    "select": ("subset",),
    "finetune": ("model",),
    "adapt": ("adapted",),
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
            graph["pool"], graph.get("subset"), e.pretrain, e.backbone, e.seed, e.resources, graph["target"]
        )
    graph.update(_models(e, graph["target"], graph.get("weights")))
    graph["metrics"] = evaluate.plan(graph["target"], _last(graph), e.evaluate)
    return {role: graph[role] for role in ROLES if role in graph}


def _models(e: Experiment, target: Artifact, weights: Artifact | None) -> dict[str, Artifact]:
    """What is trained from the weights: on the target's labels, on a source's, or on the target without them."""
    made: dict[str, Artifact] = {}
    if e.adapt.method == "uda":
        if e.source is None:
            raise UserError("adapt: uda begins with a labelled dataset: say source: {dataset: …, root: …}")
        made["source"] = ingest.plan(target.root, e.source)
    if e.adapt.method != "usl":
        made["model"] = finetune.plan(made.get("source", target), weights, e.finetune, e.backbone, e.seed, e.resources)
    if e.adapt.method != "none" and e.adapt.epochs:
        made["adapted"] = adapt.plan(target, made.get("model", weights), e.adapt, e.backbone, e.seed, e.resources)
    return made


def _last(graph: Mapping[str, Artifact]) -> Artifact:
    """What is evaluated."""
    found = next((graph[role] for role in ("adapted", "model", "weights") if role in graph), None)
    if found is None:
        raise UserError(
            "adapt.epochs=0 evaluates the weights that adaptation would start from, and pretrain: none makes none"
        )
    return found


def _subset(e: Experiment, pool: Artifact, target: Artifact) -> dict[str, Artifact]:
    provenance = provenance_of(e.pool)
    made = {}
    if e.select.strategy == "cfs":
        proxy = e.proxy
        made["source_proxy"] = pretrain.plan(
            pool, None, proxy.pretrain, proxy.backbone, proxy.seed, e.resources, target
        )
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
        UserError: a dataset that is not there or empty, a target without one of its splits, a pool that holds test
            images, an unknown backbone or stem, an image size that the patch does not divide, weights of another
            architecture, a subset of no image, a batch that cannot be filled, or dealt to workers and micro-batches,
            a file list that cannot be read, a proxy that is not pre-trained, a probe that would find nothing, a target
            of fewer images than a neighbour list.
    """
    experiments = list(experiments)
    for backbone in {str(b): b for e in experiments for b in (e.backbone, e.proxy.backbone)}.values():
        start.check(backbone)
    for e in experiments:
        for prefix, part in _trainings(e).items():
            _check_local_size(f"{prefix}pretrain", part.backbone, part.pretrain)
        _check_dealing(e, 1 if e.resources.workers == "auto" else e.resources.workers)
        if _needs_scores(e) and e.proxy.pretrain.method == "none":
            raise UserError("proxy.pretrain.method is none: the strategy cfs needs a pre-trained source proxy")
        if e.select.strategy == "list" and not e.select.whole and e.pretrain.method != "none":
            _check_batch("pretrain", e.pretrain, len(read_list(select.list_file(e.select))), "select.list")
    _check_sources(experiments, plans)


def check_workers(experiments: Iterable[Experiment]) -> None:
    """Refuse, as soon as Ray is there to say how many workers `auto` comes to, batches that cannot be dealt to them.

    Raises:
        UserError: such a batch, or workers that the cluster cannot hold.
    """
    for e in experiments:
        _check_dealing(e, training_share(e.resources).workers)


def _check_sources(experiments: Sequence[Experiment], plans: Mapping[str, Mapping[str, Artifact]]) -> None:
    """What depends on the datasets, those that some experiment uses."""
    root = next(iter(next(iter(plans.values())).values())).root
    datasets = Datasets(root, max(map(_images_needed, experiments)))
    for e in experiments:
        target = datasets.look("target", e.target)
        adapted_from = datasets.look("source", e.source) if e.adapt.method == "uda" and e.source else None
        _check_identities(e, target, adapted_from)
        if e.adapt.method != "none":
            adapt.check_images(e.adapt, (target.images or {})["train"])
        _check_probe(e, target)
        if e.pretrain.method != "none":
            _check_images(e, datasets.look("pool", e.pool))


def _trainings(e: Experiment) -> dict[str, Experiment | Proxy]:
    """What is trained, by the prefix of its keys."""
    return {"": e, **({"proxy.": e.proxy} if _needs_scores(e) else {})}


def _check_identities(e: Experiment, target: Contents, source: Contents | None) -> None:
    """A batch of more identities than there are; `source` is what domain adaptation is fine-tuned on."""
    for prefix, part in _trainings(e).items():
        if e.adapt.method == "usl" and not prefix:
            continue  # nothing is fine-tuned
        name, labelled = ("source", source) if source is not None and not prefix else ("target", target)
        if part.finetune.identities > labelled.identities:
            raise UserError(
                f"{prefix}finetune.identities={part.finetune.identities}, but the {name}'s split train has only "
                f"{labelled.identities} identities; lower it"
            )


def _check_probe(e: Experiment, target: Contents) -> None:
    """A probe that would find nothing."""
    configs = [part.pretrain for part in _trainings(e).values()]
    if not target.findable and any(config.method != "none" and config.probe_epochs for config in configs):
        raise UserError(f"target: dataset {e.target.dataset}: {NOTHING_TO_FIND}")


def _images_needed(e: Experiment) -> int:
    """Images from which on a pool is large enough for every check of `_check_images`."""
    subset = e.select.count or math.ceil(e.pretrain.batch_size / e.select.fraction) + 1  # for its being rounded
    return max(subset, e.proxy.pretrain.batch_size if _needs_scores(e) else 0)


def _check_images(e: Experiment, pool: Contents) -> None:
    """A subset or a batch of more images than there are."""
    if pool.images is None:
        return
    stored = sum(pool.images.values())
    if (e.select.count or 0) > stored:
        raise UserError(f"select.count={e.select.count}, but the pool has only {stored} images; lower it")
    chosen = e.select.count or round(e.select.fraction * stored)
    share = f"select.count={e.select.count}" if e.select.count else f"select.fraction={e.select.fraction}"
    if not chosen:
        raise UserError(f"{share} of the pool's {stored} images selects none; raise it")
    _check_batch("pretrain", e.pretrain, chosen, f"{share} of the pool's {stored}")
    if _needs_scores(e):
        _check_batch("proxy.pretrain", e.proxy.pretrain, stored, "the pool")


def _check_batch(key: str, config: Pretrain, images: int, source: str) -> None:
    if config.batch_size > images:
        raise UserError(
            f"{key}.batch_size={config.batch_size} is more than the {images} images to train on ({source}); lower it"
        )


def _needs_scores(e: Experiment) -> bool:
    return e.select.strategy == "cfs" and not e.select.whole and e.pretrain.method != "none"


def _check_local_size(key: str, backbone: Backbone, config: Pretrain) -> None:
    if config.method == "none" or not backbone.name.startswith("vit"):
        return
    if any(side % PATCH for side in config.crop_sizes(backbone.img_size)[1]):
        raise UserError(f"{key}.local_size={list(config.local_size)}: give multiples of the patch, {PATCH}")


def _check_dealing(e: Experiment, workers: int) -> None:
    """Batches that cannot be dealt to the workers, and their shares to micro-batches."""
    found = f" ({workers})" if e.resources.workers == "auto" and workers > 1 else ""
    dealt = f"cannot be dealt evenly to resources.workers={e.resources.workers}{found}"
    if e.adapt.method != "none" and e.adapt.clusters % workers:
        raise UserError(f"adapt.clusters={e.adapt.clusters} {dealt}; make it a multiple of {workers}")
    for prefix, part in _trainings(e).items():
        config, identities = part.pretrain, part.finetune.identities
        parts = workers * config.accumulate
        if config.method != "none" and config.batch_size % parts:
            raise UserError(
                f"{prefix}pretrain.batch_size={config.batch_size} {dealt} × {prefix}pretrain.accumulate="
                f"{config.accumulate}; make it a multiple of {parts}"
            )
        if identities % workers:
            raise UserError(f"{prefix}finetune.identities={identities} {dealt}; make it a multiple of {workers}")
