"""The graph behind a subset: the proxies, scores, features and priorities that its strategy needs."""

from collections.abc import Mapping
from dataclasses import dataclass

from rayreid.config import Experiment, Ranked, Select
from rayreid.errors import UserError
from rayreid.models.backbones import WITH_TOKENS
from rayreid.models.embedding import Token
from rayreid.selection.provenance import Provenance, provenance_of
from rayreid.selection.registry import STRATEGIES, Basis
from rayreid.stages import combination, features, ingest, priority, proxies, quality, quality_priority, score, select
from rayreid.storage.artifacts import Artifact
from rayreid.storage.roles import Role

FEATURES: dict[Token, str] = {"class": "features", "patch": "patch_features"}
"""Roles of the pool's features by token; those of the targets' have `target_` in front."""


def plan_subset(e: Experiment, pool: Artifact, target: Artifact) -> dict[str, Artifact]:
    """Plan the subset of an experiment and all artifacts that it needs in addition to the pool, by role.

    Raises:
        UserError: A file that the configuration names does not exist.
    """
    made: dict[str, Artifact] = {}
    if needs_source(e):
        made["source_proxy"] = proxies.plan_source(pool, e.proxy, e.resources, target)
    planner = _Planner(e, pool, target, provenance_of(e.pool), made)
    combined = STRATEGIES[e.select.strategy].basis is Basis.PARTS
    ranked = planner.combine(e.select) if combined else planner.rank(e.select)
    made["subset"] = select.plan(pool, ranked, e.select, e.seed, planner.provenance)
    return made


def ranked_of(graph: Mapping[str, Artifact]) -> Artifact | None:
    """Return the scores or priorities by which an experiment cuts its subset; None if no artifact holds them."""
    return graph.get("priority") or graph.get("scores")  # a combination has both


@dataclass(frozen=True)
class _Planner:
    """Plans what strategies need; what several of them need is planned once.

    Attributes:
        e: The experiment.
        pool, target: Its image stores.
        provenance: Origins of the pool's images, if known.
        made: The artifacts by role, to which it adds.
    """

    e: Experiment
    pool: Artifact
    target: Artifact
    provenance: Provenance | None
    made: dict[str, Artifact]

    def rank(self, config: Ranked) -> Artifact | None:
        """Plan the scores or priorities by one strategy; None if it needs no artifact."""
        basis = STRATEGIES[config.strategy].basis
        if basis is Basis.SCORES:
            return self._scores()
        if basis is Basis.MEASURES:
            self.made["quality"] = quality.plan(self.pool)
            self.made["priority"] = quality_priority.plan(self.pool, self.made["quality"], config, self.provenance)
            return self.made["priority"]
        return self._priority(config) if basis is Basis.FEATURES else None

    def combine(self, config: Select) -> Artifact:
        """Plan the priorities that combine those of several strategies."""
        parts = [(part, self.rank(part)) for part in config.parts]
        found = next((self.made[role] for role in FEATURES.values() if role in self.made), None)
        ranked = combination.plan(self.pool, parts, found, self.e.seed, self.provenance)
        self.made.update({role: part for role, part in ranked.inputs.items() if Role(role).kind == "part"})
        self.made["priority"] = ranked
        return ranked

    def _scores(self) -> Artifact:
        self.made.update(_target_proxies(self.e, self.made["source_proxy"], self.target))
        thetas = {Role(role).target: one for role, one in self.made.items() if Role(role).kind == "target_proxy"}
        stores = {Role(role).target: one for role, one in self.made.items() if Role(role).kind == "target"}
        if not self.e.score.targets:
            stores[""] = self.target
        source = self.made["source_proxy"]
        self.made["scores"] = score.plan(self.pool, source, thetas, self.e.score, self.provenance, stores)
        return self.made["scores"]

    def _priority(self, config: Ranked) -> Artifact:
        found = self._features(FEATURES[config.token], self.pool, "all", config.token)
        targets = self._targets(config.token) if STRATEGIES[config.strategy].targets else {}
        self.made["priority"] = priority.plan(self.pool, found, targets, config, self.e.seed, self.provenance)
        return self.made["priority"]

    def _targets(self, token: Token) -> dict[str, tuple[Artifact, Artifact]]:
        """Plan the features of each target's training images; return store and features by the target's name."""
        named = {one.label: one.source for one in self.e.score.targets if one.source}
        stores = {name: ingest.plan(self.pool.root, images, self.e.ingest) for name, images in named.items()}
        self.made.update({Role.of("target", name): store for name, store in stores.items()})
        return {
            name: (store, self._features(Role.of(f"target_{FEATURES[token]}", name), store, "train", token))
            for name, store in (stores or {"": self.target}).items()
        }

    def _features(self, role: str, images: Artifact, part: features.Part, token: Token) -> Artifact:
        self.made[role] = features.plan(images, self.made["source_proxy"], part, self.e.score, token)
        return self.made[role]


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
    return e.selects and any(STRATEGIES[one.strategy].needs_source_proxy for one in e.select.rankings)


def _needing_source(e: Experiment) -> str:
    return next(one.strategy for one in e.select.rankings if STRATEGIES[one.strategy].needs_source_proxy)


def needs_target_proxies(e: Experiment) -> bool:
    """Return whether θt is also needed."""
    return e.selects and any(STRATEGIES[one.strategy].needs_target_proxies for one in e.select.rankings)


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
            f"proxy.pretrain.method is none: the strategy {_needing_source(e)} needs a pre-trained source proxy; name "
            "your own with proxy.source"
        )
    if e.score.targets and e.proxy.target is not None:
        raise UserError("proxy.target and score.targets both say what to score for; leave one out")
    if any(one.token == "patch" for one in e.select.rankings) and e.proxy.backbone.name not in WITH_TOKENS:
        raise UserError(f"select.token: patch is for vit_* only, not proxy.backbone.name={e.proxy.backbone.name}")
    named = {"proxy.source": e.proxy.source, "proxy.target": e.proxy.target}
    named |= {f"score.targets, {one.label}": one.proxy for one in e.score.targets}
    proxies.check(e.proxy.backbone, {key: checkpoint for key, checkpoint in named.items() if checkpoint is not None})
