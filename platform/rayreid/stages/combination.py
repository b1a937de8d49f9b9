"""Stage *priority* of the strategy `combine`: the priorities by several strategies → a priority per pool image."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayreid.config import CombinedPart
from rayreid.data.store.store import ImageStore
from rayreid.execution.gpus import assigned_device
from rayreid.execution.production import StageContext
from rayreid.execution.resources import Share
from rayreid.files import checksum
from rayreid.selection.clusters import pool_clusters
from rayreid.selection.combine import CombinedRanking, Mask, combine
from rayreid.selection.dedup import few_of_each
from rayreid.selection.provenance import Provenance
from rayreid.selection.registry import STRATEGIES, Basis
from rayreid.selection.strategies import Priority
from rayreid.stages import score
from rayreid.stages.priority import VERSION, bytes_and_sizes, features_in, on_a_worker, read_groups, write_priority
from rayreid.stages.select import list_file, ranking
from rayreid.storage.artifacts import Artifact
from rayreid.storage.roles import Role

STRATEGY = "combine"


def plan(
    pool: Artifact,
    parts: Sequence[tuple[CombinedPart, Artifact | None]],
    found: Artifact | None,
    seed: int,
    provenance: Provenance | None,
) -> Artifact:
    """Plan the priorities that combine those of several strategies.

    Args:
        pool: The pool's image store.
        parts: The strategies in their order, each with its scores or priorities if it has an artifact of these.
        found: Features of θs, if a strategy uses them; then the clusters of the pool are recorded, too.
        seed: For the clusters, and for strategies that are seeded and have no artifact.
        provenance: If given, used for judging only.
    """
    told = [{"strategy": part.strategy, "weight": part.weight, **_list_of(part)} for part, _ in parts]
    fields: dict[str, Any] = {"strategy": STRATEGY, "parts": told}
    inputs = {"pool": pool}
    inputs |= {_role(number, part): ranked for number, (part, ranked) in enumerate(parts, 1) if ranked is not None}
    alone = any(ranked is None and STRATEGIES[part.strategy].seeded for part, ranked in parts)
    if found is not None:
        inputs["features"] = found
    if alone or found is not None:
        fields["seed"] = seed
    job = partial(_combine, [part for part, _ in parts], seed, provenance)
    return Artifact(pool.root, "priority", VERSION, fields, inputs, job)


def _role(number: int, part: CombinedPart) -> Role:
    return Role.of("part", f"{number}_{part.strategy}")


def _list_of(part: CombinedPart) -> dict[str, str]:
    return {"list": checksum(list_file(part))} if STRATEGIES[part.strategy].basis is Basis.LIST else {}


def _combine(
    parts: Sequence[CombinedPart], seed: int, provenance: Provenance | None, context: StageContext
) -> dict[str, Any]:
    store = ImageStore(context.input("pool"))
    combined = []
    for number, part in enumerate(parts, 1):
        role = _role(number, part)
        folder = context.input(role) if role in context.artifact.inputs else None
        if STRATEGIES[part.strategy].images and folder is not None:
            among = _few_of_each(store, folder, part.keep, seed)
        else:
            among = partial(_among, ranking(part, seed, store, folder, context.screen.say))
        combined.append(CombinedRanking(role.target, part.weight, among))
    priority, facts = combine(combined, len(store))
    columns = {"priority": priority}
    if "features" in context.artifact.inputs:
        columns["cluster"] = on_a_worker(_clusters, seed, context.input("features"), context.input("pool"))
    write_priority(context, store, columns)
    score.draw(context, store, priority, provenance, STRATEGY)
    separation = provenance.judge(store.keys, priority) if provenance else None
    judged = {"auc": separation.auc} if separation else {}
    return {"images": len(priority), "without": int(np.isnan(priority).sum()), **facts, **judged}


def _among(priority: Priority, left: Mask) -> Priority:
    """Return priorities that do not depend on which images are left."""
    return priority


def _few_of_each(store: ImageStore, folder: Path, keep: int, seed: int) -> Callable[[Mask], Priority]:
    """Return the priorities of near-duplicates as a function of the images that are left.

    Which images of a group are kept depends on them: the artifact's own priorities may keep others.
    """
    groups = read_groups(folder, "group")
    assert groups is not None

    def among(left: Mask) -> Priority:
        return few_of_each(store.keys, np.where(left, groups, -1), keep=keep, seed=seed, **bytes_and_sizes(store))[0]

    return among


def _clusters(seed: int, folder: Path, images: Path, share: Share) -> np.ndarray:
    """Return, on a worker, the cluster of each image by index row, int32, −1 if it cannot be decoded."""
    torch.set_num_threads(share.cpus)
    return pool_clusters(features_in(folder, images, "all"), assigned_device(share.gpu), seed, "auto").astype(np.int32)
