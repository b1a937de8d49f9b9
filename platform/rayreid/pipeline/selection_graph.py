"""The graph behind a subset: the proxies, scores, features and priorities that its strategy needs."""

from rayreid.config import Experiment
from rayreid.errors import UserError
from rayreid.selection.provenance import Provenance, provenance_of
from rayreid.selection.registry import STRATEGIES, Basis
from rayreid.stages import features, ingest, priority, proxies, score, select
from rayreid.storage.artifacts import Artifact
from rayreid.storage.roles import Role


def plan_subset(e: Experiment, pool: Artifact, target: Artifact) -> dict[str, Artifact]:
    """Plan the subset of an experiment and all artifacts that it needs in addition to the pool, by role.

    Raises:
        UserError: A file that the configuration names does not exist.
    """
    provenance = provenance_of(e.pool)
    basis = STRATEGIES[e.select.strategy].basis
    made: dict[str, Artifact] = {}
    if needs_source(e):
        made["source_proxy"] = proxies.plan_source(pool, e.proxy, e.resources, target)
    if basis is Basis.SCORES:
        made |= _scores(e, pool, target, made["source_proxy"], provenance)
    elif basis is Basis.FEATURES:
        made |= _priority(e, pool, target, made["source_proxy"], provenance)
    ranked = made.get("scores") or made.get("priority")
    made["subset"] = select.plan(pool, ranked, e.select, e.seed, provenance)
    return made


def _scores(
    e: Experiment, pool: Artifact, target: Artifact, source: Artifact, provenance: Provenance | None
) -> dict[str, Artifact]:
    made = _target_proxies(e, source, target)
    thetas = {Role(role).target: proxy for role, proxy in made.items() if Role(role).kind == "target_proxy"}
    stores = {Role(role).target: store for role, store in made.items() if Role(role).kind == "target"}
    if not e.score.targets:
        stores[""] = target
    return {**made, "scores": score.plan(pool, source, thetas, e.score, provenance, stores)}


def _priority(
    e: Experiment, pool: Artifact, target: Artifact, source: Artifact, provenance: Provenance | None
) -> dict[str, Artifact]:
    made = {"features": features.plan(pool, source, "all", e.score)}
    targets: dict[str, tuple[Artifact, Artifact]] = {}
    if STRATEGIES[e.select.strategy].targets:
        stores = {one.label: ingest.plan(source.root, one.source, e.ingest) for one in e.score.targets if one.source}
        made |= {Role.of("target", name): store for name, store in stores.items()}
        for name, store in (stores or {"": target}).items():
            theirs = features.plan(store, source, "train", e.score)
            made[Role.of("target_features", name)] = theirs
            targets[name] = (store, theirs)
    return {**made, "priority": priority.plan(pool, made["features"], targets, e.select, e.seed, provenance)}


def _target_proxies(e: Experiment, source: Artifact, target: Artifact) -> dict[str, Artifact]:
    """Plan θt for the experiment's target, or for each of `score.targets` with its image store."""
    if not e.score.targets:
        return {"target_proxy": proxies.plan_target(target, source, e.proxy.target, e.proxy, e.resources)}
    made: dict[str, Artifact] = {}
    for one in e.score.targets:
        store = ingest.plan(source.root, one.source, e.ingest) if one.source else None
        if store is not None:
            made[Role.of("target", one.label)] = store
        made[Role.of("target_proxy", one.label)] = proxies.plan_target(store, source, one.proxy, e.proxy, e.resources)
    return made


def needs_source(e: Experiment) -> bool:
    """Return whether θs is needed."""
    return e.selects and STRATEGIES[e.select.strategy].needs_source_proxy


def needs_target_proxies(e: Experiment) -> bool:
    """Return whether θt is also needed."""
    return e.selects and STRATEGIES[e.select.strategy].needs_target_proxies


def pretrains_proxy(e: Experiment) -> bool:
    """Return whether θs is pre-trained here."""
    return needs_source(e) and e.proxy.source is None


def finetunes_proxies(e: Experiment) -> bool:
    """Return whether any θt is fine-tuned here."""
    own = [one.proxy for one in e.score.targets] or [e.proxy.target]
    return needs_target_proxies(e) and None in own


def check_proxies(e: Experiment) -> None:
    """Refuse proxies that cannot be made, and checkpoints that cannot replace them.

    Raises:
        UserError: The source proxy has no pre-training, the targets are defined twice, or a checkpoint does not fit.
    """
    if e.proxy.source is None and e.proxy.pretrain.method == "none":
        raise UserError(
            f"proxy.pretrain.method is none: the strategy {e.select.strategy} needs a pre-trained source proxy; name "
            "your own with proxy.source"
        )
    if e.score.targets and e.proxy.target is not None:
        raise UserError("proxy.target and score.targets both say what to score for; leave one out")
    named = {"proxy.source": e.proxy.source, "proxy.target": e.proxy.target}
    named |= {f"score.targets, {one.label}": one.proxy for one in e.score.targets}
    proxies.check(e.proxy.backbone, {key: checkpoint for key, checkpoint in named.items() if checkpoint is not None})
