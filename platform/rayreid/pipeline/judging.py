"""Judging selections by features: which artifacts that needs, and computing the figures on a worker.

All selections are judged by the features of one θs, that of the first row that has one. Missing features are made as
artifacts, which strategies share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from rayreid.config import Experiment, Resources
from rayreid.console import Screen
from rayreid.data.store.store import ImageStore
from rayreid.execution.gpus import assigned_device
from rayreid.execution.production import produce
from rayreid.execution.resources import ANYWHERE, Share, training_share
from rayreid.pipeline.compared_selection import Selection, sizes_of
from rayreid.selection.judgement import Judgement, judge
from rayreid.selection.steps import Steps, steps_of
from rayreid.stages import features
from rayreid.stages.priority import features_in
from rayreid.storage.artifacts import Artifact
from rayreid.storage.roles import Role
from rayreid.tracking.run import Run

WHOLE = "all images"
"""Label of the figures with which to compare those of the selections; no usual name of a row."""


@dataclass(frozen=True)
class Judged:
    """Figures of each selection at each fraction.

    Attributes:
        source: The θs whose features were compared.
        figures: Figures by label of the selection and fraction; those of the whole pool are under (`WHOLE`, 1).
    """

    source: str
    figures: Mapping[tuple[str, float], Judgement]


@dataclass(frozen=True)
class Judging:
    """The artifacts by which selections are judged.

    Attributes:
        graph: The pool, θs, the targets, and the features of all images, by role.
        seed: Seed of the samples and clusters.
    """

    graph: Mapping[str, Artifact]
    seed: int

    @property
    def features(self) -> list[Artifact]:
        """The features of the pool, and of each target."""
        return [self.graph["features"], *(theirs for _, theirs in self._targets)]

    @property
    def _targets(self) -> list[tuple[Artifact, Artifact]]:
        """The store of each target and the features of its training images."""
        names = [Role(role).target for role in self.graph if Role(role).kind == "target_features"]
        return [(self.graph[Role.of("target", name)], self.graph[Role.of("target_features", name)]) for name in names]

    def judge(
        self, store: ImageStore, found: Sequence[Selection], run: Run, screen: Screen, tags: Mapping[str, Any]
    ) -> Judged:
        """Make missing features, and return the figures of the selections, computed on one worker.

        Raises:
            UserError: The features cannot be made.
        """
        for artifact in self.features:
            produce(artifact, run, screen, tags)
        sizes = {**sizes_of(store), 1.0: len(store)}
        steps = [steps_of(store.keys, one.priority, list(sizes.values())) for one in found]
        share = training_share(Resources())  # a GPU, or all CPUs of a node
        task = ray.remote(num_cpus=share.cpus, num_gpus=1 if share.gpu else 0, scheduling_strategy=ANYWHERE)(_judge)
        pool = self.graph["features"].path, self.graph["pool"].path
        targets = [(theirs.path, images.path) for images, theirs in self._targets]
        *judged, (whole, *_) = ray.get(
            task.remote(pool, targets, [*steps, np.zeros(len(store), np.int8)], len(sizes), self.seed, share)
        )
        figures = {
            (one.label, fraction): theirs
            for one, line in zip(found, judged, strict=True)
            for fraction, theirs in zip(sizes, line, strict=True)
        }
        return Judged(str(self.graph["source_proxy"]), {**figures, (WHOLE, 1.0): whole})


def plan_judging(rows: Mapping[str, Experiment], plans: Mapping[str, Mapping[str, Artifact]]) -> Judging | None:
    """Plan the features of pool and targets under the θs of the first row that has one; None if none of them does.

    The targets are the datasets in `score.targets` that any row's strategy uses, else the experiment's own target.
    """
    for label, graph in plans.items():
        if "source_proxy" in graph:
            row, pool, source = rows[label], graph["pool"], graph["source_proxy"]
            stores = {
                Role(role).target: store for one in plans.values() for role, store in one.items() if _is_named(role)
            }
            made = {"pool": pool, "source_proxy": source, "features": features.plan(pool, source, "all", row.score)}
            for name, store in (stores or {"": graph["target"]}).items():
                made[Role.of("target", name)] = store
                made[Role.of("target_features", name)] = features.plan(store, source, "train", row.score)
            return Judging(made, row.seed)
    return None


def _is_named(role: str) -> bool:
    return Role(role).kind == "target" and Role(role).target != ""


def _judge(
    pool: tuple[Path, Path],
    targets: Sequence[tuple[Path, Path]],
    steps: Sequence[Steps],
    cuts: int,
    seed: int,
    share: Share,
) -> list[list[Judgement]]:
    """Return, on a worker, the figures of all cuts of some selections, from folders of features and of their images."""
    torch.set_num_threads(share.cpus)
    theirs = [features_in(*folders, "train") for folders in targets]
    return judge(features_in(*pool, "all"), theirs, steps, cuts, assigned_device(share.gpu), seed)
