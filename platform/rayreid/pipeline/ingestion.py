"""Ingestion of the datasets that experiments use, before anything is trained, and checks of what was stored."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayreid.config import Experiment, Source
from rayreid.console import Screen
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.execution.production import produce
from rayreid.pipeline.preflight import check_sources
from rayreid.stages import features
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.storage.roles import Role
from rayreid.tracking.run import Run

_TEST_SPLITS = ("query", "gallery")


def make_stores(
    wanted: Iterable[Artifact],
    experiments: Mapping[str, Experiment],
    plans: Mapping[str, Mapping[str, Artifact]],
    run: Run,
    screen: Screen,
    tags: Mapping[str, Any],
) -> None:
    """Ingest the datasets on which artifacts depend, and check the stores as their listings were checked.

    What is made of a pool needs the target's store, too, if only to show that the pool does not hold its test images.

    Args:
        wanted: The artifacts to be made.
        experiments: The experiments that want them, by label.
        plans: The artifacts of these experiments, by label and role.
        run: MLflow run that owns the runs of the stages.
        screen: Shows progress.
        tags: MLflow tags of the stages' runs.

    Raises:
        UserError: An ingest fails, a store lacks what an experiment needs, or a pool holds test images.
    """
    needed = lineage({str(number): artifact for number, artifact in enumerate(wanted)})
    stores = {identifier: artifact for identifier, artifact in needed.items() if artifact.stage == "ingest"}
    for graph in plans.values():
        if {"pool", "target"} <= graph.keys() and _is_used(graph["pool"], needed.values()):
            stores.setdefault(graph["target"].id, graph["target"])
    for store in stores.values():
        produce(store, run, screen, tags)
    check_sources(experiments.values(), plans)
    for label, experiment in experiments.items():
        if {"pool", "target"} <= plans[label].keys():
            refuse_leak(experiment.pool, "the target", plans[label]["pool"], plans[label]["target"])
            _refuse_leaks_of_score_targets(plans[label])


def _is_used(pool: Artifact, needed: Iterable[Artifact]) -> bool:
    """Return whether one of these artifacts is still to be made of a pool."""
    return any(not artifact.complete and pool in artifact.inputs.values() for artifact in needed)


def refuse_leak(source: Source, whose: str, pool: Artifact, target: Artifact) -> None:
    """Refuse a pool that holds test images of a target, unless the file allows it; a store that is missing passes.

    Raises:
        UserError: The pool holds the very bytes of a query or gallery image.
    """
    found = leaked_images(pool, target)
    if found and not source.allow_test_images:
        raise UserError(
            f"pool: dataset {source.dataset} holds {found:,} query and gallery images of {whose}, byte for byte: "
            "pre-training on them would leak the test; take them out, or set pool.allow_test_images=true, which marks "
            "all results"
        )


def _refuse_leaks_of_score_targets(graph: Mapping[str, Artifact]) -> None:
    """Refuse to select by a target's test images, which a dataset in `score.targets` holds among those it is used for.

    Raises:
        UserError: It does.
    """
    for role, store in graph.items():
        named = Role(role).target if Role(role).kind == "target" else ""
        if named and store.complete and graph["target"].complete:
            found = _count_compared_test_images(store.path, graph["target"].path)
            if found:
                raise UserError(
                    f"score target {named}: {found:,} of its images are query and gallery images of the target, byte "
                    "for byte: selecting by them would leak the test; take them out"
                )


def leaked_images(pool: Artifact, target: Artifact) -> int:
    """Return how many query and gallery images of a target a pool holds, byte for byte; 0 if a store is missing."""
    return count_test_images(pool.path, target.path) if pool.complete and target.complete else 0


@lru_cache(maxsize=64)
def count_test_images(pool: Path, target: Path) -> int:
    """Return how many query and gallery images of a target's store a pool's store holds, byte for byte."""
    return _count_among(ImageStore(target), ImageStore(pool).digests())


@lru_cache(maxsize=64)
def _count_compared_test_images(images: Path, target: Path) -> int:
    """Return the same for the images of a store that a pool is compared with, or that a proxy is fine-tuned on."""
    store = ImageStore(images)
    return _count_among(ImageStore(target), store.digests().take(pa.array(features.rows_of(store, "train"))))


def _count_among(target: ImageStore, digests: pa.Array) -> int:
    """Return how many query and gallery images of a target have one of these digests."""
    rows = np.concatenate([target.rows_of(split) for split in _TEST_SPLITS])
    return int(pc.sum(pc.is_in(target.digests().take(pa.array(rows)), value_set=digests)).as_py() or 0)
