"""The graph of the artifacts of one experiment, planned before anything runs."""

from collections.abc import Mapping
from pathlib import Path

from rayreid.config import Experiment
from rayreid.errors import UserError
from rayreid.pipeline.selection_graph import plan_subset
from rayreid.stages import adapt, evaluate, finetune, ingest, pretrain
from rayreid.stages.training.early_stopping import MedianStopping
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.storage.roles import Role

ROLES = (
    "pool",
    "target",
    "source",
    "source_proxy",
    "target_proxy",
    "features",
    "patch_features",
    "target_features",
    "target_patch_features",
    "quality",
    "scores",
    "part",
    "priority",
    "subset",
    "weights",
    "model",
    "adapted",
    "metrics",
)
"""The kinds of an experiment's artifacts, in the order in which they are made. With `score.targets` each target has
its own artifacts in the roles `target.<name>`, `target_proxy.<name>` and `target_features.<name>`; with the strategy
`combine` each part has its priorities in the role `part.<number>_<strategy>`."""

STAGE_ROLE = {
    "ingest": ("pool", "target", "source"),
    "pretrain": ("weights",),
    "score": ("scores", "part", "priority"),
    "select": ("subset",),
    "finetune": ("model",),
    "adapt": ("adapted",),
    "evaluate": ("metrics",),
}
"""The kinds of artifacts that the command of each stage makes."""


def plan(experiment: Experiment, root: Path, stopping: MedianStopping | None = None) -> dict[str, Artifact]:
    """Plan the artifacts of one experiment by role; artifacts that it does not use are absent.

    A fraction of 1 needs no subset, no scores and no proxies; `pretrain.method: none` needs no pool.

    Args:
        experiment: The experiment to plan.
        root: The output root.
        stopping: Rule that may stop the pre-training early; None: never.

    Raises:
        UserError: A file that the configuration names does not exist.
    """
    e = experiment
    graph = {"target": ingest.plan(root, e.target, e.ingest)}
    if e.pretrain.method != "none":
        graph["pool"] = ingest.plan(root, e.pool, e.ingest)
        if e.selects:
            graph.update(plan_subset(e, graph["pool"], graph["target"]))
        graph["weights"] = pretrain.plan(
            graph["pool"], graph.get("subset"), e.pretrain, e.backbone, e.seed, e.resources, graph["target"], stopping
        )
    graph.update(_models(e, graph["target"], graph.get("weights")))
    graph["metrics"] = evaluate.plan(graph["target"], _last(graph), e.evaluate)
    return dict(sorted(graph.items(), key=lambda item: ROLES.index(Role(item[0]).kind)))


def _models(e: Experiment, target: Artifact, weights: Artifact | None) -> dict[str, Artifact]:
    """Plan the models trained from the weights: on the target's or a source's labels, or on the unlabelled target."""
    made: dict[str, Artifact] = {}
    if e.adapt.method == "uda":
        if e.source is None:
            raise UserError("adapt: uda begins with a labelled dataset: say source: {dataset: …, root: …}")
        made["source"] = ingest.plan(target.root, e.source, e.ingest)
    if e.adapt.method != "usl":
        made["model"] = finetune.plan(made.get("source", target), weights, e.finetune, e.backbone, e.seed, e.resources)
    if e.adapt.method != "none" and e.adapt.epochs:
        made["adapted"] = adapt.plan(target, made.get("model", weights), e.adapt, e.backbone, e.seed, e.resources)
    return made


def _last(graph: Mapping[str, Artifact]) -> Artifact:
    """Return the artifact to evaluate."""
    found = next((graph[role] for role in ("adapted", "model", "weights") if role in graph), None)
    if found is None:
        raise UserError(
            "adapt.epochs=0 evaluates the weights that adaptation would start from, and pretrain: none makes none"
        )
    return found


def shared(plans: Mapping[str, Mapping[str, Artifact]], least: int = 2) -> list[Artifact]:
    """Return the artifacts that at least `least` experiments depend on, inputs first: they run once, before these."""
    users: dict[str, int] = {}
    found: dict[str, Artifact] = {}
    for graph in plans.values():
        for identifier, artifact in lineage(graph).items():
            users[identifier] = users.get(identifier, 0) + 1
            found.setdefault(identifier, artifact)
    return [artifact for identifier, artifact in found.items() if users[identifier] >= least]
