"""Stage *select*: a strategy's priority per image, cut at a fraction → subset."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rayreid import forms
from rayreid.config import Ranked, Select
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.score_figures import score_histogram
from rayreid.execution.production import StageContext, identity
from rayreid.files import checksum, write_atomically
from rayreid.models.weights import weights_of
from rayreid.paths import data_path
from rayreid.selection.clusters import largest_crowd
from rayreid.selection.filelist import match_entries, read_list
from rayreid.selection.meaning import Separation
from rayreid.selection.provenance import Provenance
from rayreid.selection.registry import STRATEGIES, Basis, priority
from rayreid.selection.strategies import cut
from rayreid.selection.subset_file import SUBSET, write_subset
from rayreid.stages import score
from rayreid.stages.priority import read_groups, read_priority
from rayreid.stages.score_meaning import TAG, meaning_of, warn
from rayreid.state_files import read_json, remake
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.storage.roles import Role

VERSION = 1
MANIFEST = "manifest.json"
_PROXY = forms.record({"artifact": forms.text, "weights": forms.text})
_FORM = forms.record({"count": forms.count, "cut": forms.number, "proxies": forms.mapping_of(_PROXY)})


def plan(pool: Artifact, ranked: Artifact | None, config: Select, seed: int, provenance: Provenance | None) -> Artifact:
    """Plan a subset of the pool.

    Args:
        pool: The pool's image store.
        ranked: The scores or priorities, for strategies that have an artifact of these; a seed is part of its identity.
        config: The strategy and the size.
        seed: For other strategies that are seeded.
        provenance: If given, used for judging only.
    """
    strategy = STRATEGIES[config.strategy]
    fields = identity(select=config)
    inputs = {"pool": pool}
    if strategy.ranking is not None:
        if ranked is None:
            raise ValueError(f"the strategy {config.strategy} needs scores")
        inputs[strategy.ranking] = ranked
    elif strategy.seeded:
        fields["seed"] = seed
    if strategy.basis is Basis.LIST:
        fields["list"] = checksum(list_file(config))
    job = partial(_select, config, seed, provenance)
    return Artifact(pool.root, "select", VERSION, fields, inputs, job)


def list_file(config: Ranked) -> Path:
    """Return the file list that the strategy `list` follows.

    Raises:
        UserError: No file list is named, or the file does not exist.
    """
    if config.list is None:
        raise UserError("select.strategy is list: name the file with select.list")
    path = data_path(config.list)
    if not path.is_file():
        raise UserError(f"{path}: no such file (select.list)")
    return path


def ranking(
    config: Ranked, seed: int, store: ImageStore, ranked: Path | None, say: Callable[[str], None] = lambda text: None
) -> np.ndarray:
    """Return the strategy's priority per index row of the pool, float64 (N,), NaN: never selected.

    Args:
        config: The strategy.
        seed: For strategies that rank by keys.
        store: The pool.
        ranked: Folder of the scores or priorities, for strategies that have an artifact of these.
        say: Receives a line on how much of a file list was found.
    """
    basis = STRATEGIES[config.strategy].basis
    scores = match = None
    if ranked is not None:
        scores = score.read_scores(ranked) if basis is Basis.SCORES else read_priority(ranked)
    if basis is Basis.LIST:
        match = match_entries(read_list(list_file(config)), store.keys)
        respelt = f", {match.respelt} of them under a key with another suffix" if match.respelt else ""
        say(f"    {match.matched} of {match.entries} entries of the list are in the pool{respelt}")
    return priority(config.strategy, store.keys, seed=seed, scores=scores, match=match)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the description of a subset; see `_manifest`.

    Raises:
        DamagedFileError: It is missing or damaged.
    """
    manifest: dict[str, Any] = read_json(folder / MANIFEST, _FORM, remake(folder))
    return manifest


def separation_of(ranked: Artifact, provenance: Provenance | None) -> Separation | None:
    """Return how well complete scores or priorities separate the target's domain from the rest of the pool.

    It is None if the origins are not known. It is computed from the stored values, so that a provenance counts that was
    named or changed later: provenance is not part of an artifact's identity, and `auc` in its facts comes from what was
    known when the artifact was made.
    """
    if provenance is None:
        return None
    scores = ranked.stage == "score"
    table = score.read_scores(ranked.path) if scores else read_priority(ranked.path)
    keys = np.array(table["key"].to_pylist(), dtype=object)
    return provenance.judge(keys, table["cfs" if scores else "priority"].to_numpy())


def _select(config: Select, seed: int, provenance: Provenance | None, context: StageContext) -> dict[str, Any]:
    store = ImageStore(context.input("pool"))
    role = STRATEGIES[config.strategy].ranking
    ranked = ranking(config, seed, store, context.input(role) if role else None, context.screen.say)
    known: dict[str, Any] = _told(context, config.strategy, store, ranked, provenance)
    chosen = cut(store.keys, ranked, config.size(len(store)))
    keys = store.keys[chosen]
    write_subset(context.folder, keys, ranked[chosen])
    facts: dict[str, Any] = {"images": len(keys), "of": len(store), "cut": float(ranked[chosen].min())}
    write_atomically(context.folder / MANIFEST, json.dumps(_manifest(context.artifact, config, store, facts), indent=1))
    for name in (SUBSET, MANIFEST):
        context.run.file(context.folder / name)
    if role == "priority":
        known |= _crowd(context, context.input(role), chosen)
    if role:
        _draw(context, store.keys, ranked, facts["cut"], provenance, config.strategy)
    return {**facts, **known, **(provenance.shares(keys) if provenance else {})}


def _told(
    context: StageContext, strategy: str, store: ImageStore, ranked: np.ndarray, provenance: Provenance | None
) -> dict[str, str]:
    """Warn, before the cut, of what the order of the priorities means; return the meaning, if it is known."""
    role = STRATEGIES[strategy].ranking
    if role is None:
        return {}
    separation = provenance.judge(store.keys, ranked) if provenance else None
    meaning = meaning_of(context.artifact.inputs[role], separation)
    if meaning is None:
        return {}
    warn(context.screen, meaning, STRATEGIES[strategy].label)
    context.run.tags({TAG: meaning.word})
    return {"meaning": meaning.word}


def _crowd(context: StageContext, ranked: Path, chosen: np.ndarray) -> dict[str, float]:
    """Return which share of the subset its largest cluster gives, and warn if that is much; clusters may be unknown."""
    clusters = read_groups(ranked, "cluster")
    if clusters is None:
        return {}
    crowd = largest_crowd(clusters, chosen)
    if crowd.dominates:
        warning = (
            f"one cluster has {crowd.pool:.0%} of the pool and gives {crowd.kept:.0%} of the subset: look at it in "
            "`rayreid selections`, or give cluster or hierarchical a weight in select.parts"
        )
        context.screen.say(f"    [yellow]warning:[/] {warning}")
        context.run.tags({"warning": warning})
    return {"largest_cluster": crowd.kept}


def _manifest(artifact: Artifact, config: Select, store: ImageStore, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the subset, for readers who have only its folder."""
    return {
        "strategy": config.strategy,
        "fraction": config.share,
        "count": facts["images"],
        "pool_images": facts["of"],
        "cut": facts["cut"],
        "subset": checksum(artifact.path / SUBSET),
        "pool": {"artifact": str(artifact.inputs["pool"]), "fingerprint": store.fingerprint},
        "proxies": _proxies(artifact),
        "recipe": artifact.identity,
    }


def _proxies(artifact: Artifact) -> dict[str, dict[str, str]]:
    """Return the proxies that the priorities depend on, by role: artifact and checksum of the weights."""
    found = lineage({role: one for role, one in artifact.inputs.items() if role != "pool"})
    roles: dict[str, Artifact] = {}
    for one in found.values():
        # A strategy that compares with a target's images has their store in the role of another one's target proxy.
        proxies = {role: proxy for role, proxy in one.inputs.items() if proxy.stage != "ingest"}
        roles |= {role: proxy for role, proxy in proxies.items() if Role(role).kind in ("source", "target")}
    return {
        role: {"artifact": str(proxy), "weights": checksum(weights_of(proxy.path))} for role, proxy in roles.items()
    }


def _draw(
    context: StageContext,
    keys: np.ndarray,
    scores: np.ndarray,
    lowest: float,
    provenance: Provenance | None,
    strategy: str,
) -> None:
    """Draw a histogram of the scores, with the cut."""
    scored = np.isfinite(scores)
    groups = provenance.groups(keys[scored]) if provenance else None
    figure = score_histogram(scores[scored], cut=lowest, groups=groups, label=STRATEGIES[strategy].label)
    context.run.figure(figure, f"figures/{strategy}_histogram.png")
