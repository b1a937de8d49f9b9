"""Short pre-trainings on each line of the table of selections: at equal steps, with a probe before and after."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayreid.config import Experiment, Pretrain
from rayreid.config.loading import change
from rayreid.console import Screen
from rayreid.data.store.store import ImageStore
from rayreid.execution.production import produce
from rayreid.pipeline.compared_selection import FRACTIONS, sizes_of
from rayreid.pipeline.graph import plan
from rayreid.pipeline.judging import WHOLE
from rayreid.pipeline.probes import probes_of
from rayreid.stages import pretrain
from rayreid.storage.artifacts import Artifact
from rayreid.tracking.run import Run

Line = tuple[str, float]
"""A line of the table: label of the selection, and fraction of the pool."""


@dataclass(frozen=True)
class Trained:
    """The results of short trainings.

    Attributes:
        steps: Number of optimizer steps of each.
        probes: Probes of each line that was trained; see `probes_of`.
    """

    steps: int
    probes: Mapping[Line, Mapping[str, float | None]]


@dataclass(frozen=True)
class ShortTrainings:
    """Pre-trainings of one backbone by one method, each on another part of the pool.

    Attributes:
        steps: Number of optimizer steps of each.
        batch_size: Number of images of a step; a part of the pool with fewer is left out.
        weights: The artifact of each training.
    """

    steps: int
    batch_size: int
    weights: Mapping[Line, Artifact]

    @property
    def graph(self) -> dict[str, Artifact]:
        """The trainings by name of their line."""
        return {f"{label} {fraction}": weights for (label, fraction), weights in self.weights.items()}

    def run(self, store: ImageStore, run: Run, screen: Screen, tags: Mapping[str, Any]) -> Trained:
        """Make missing trainings, and return their results.

        Args:
            store: The pool.
            run: MLflow run that owns those of the trainings.
            screen: Shows progress.
            tags: MLflow tags of the trainings' runs.
        """
        shown = {*sizes_of(store), 1.0}
        found: dict[Line, dict[str, float | None]] = {}
        for (label, fraction), weights in self.weights.items():
            if fraction not in shown or self._images(store, weights, run, screen, tags) < self.batch_size:
                continue
            row = {"row": f"{label} at {fraction:.0%}", "fraction": fraction}
            found[label, fraction] = probes_of(produce(weights, run, screen, {**tags, **row}))
        return Trained(self.steps, found)

    def _images(self, store: ImageStore, weights: Artifact, run: Run, screen: Screen, tags: Mapping[str, Any]) -> int:
        """Return the number of images that a training would use; their subset is made for it."""
        subset = weights.inputs.get("subset")
        return len(store) if subset is None else int(produce(subset, run, screen, tags).facts["images"])


def plan_short_trainings(rows: Mapping[str, Experiment], steps: int, root: Path) -> ShortTrainings:
    """Plan a training on each selection at each fraction of the table, and one on the whole pool.

    All use the backbone, the method and the seed of the first row; its warm-up is the published share of the steps, for
    the file's own is meant for the file's own length. The probe looks at the target's training images.

    Args:
        rows: The experiments whose selections are compared, by label.
        steps: Number of optimizer steps.
        root: The output root.

    Raises:
        UserError: The number of steps is not allowed.
    """
    first = next(iter(rows.values()))
    short = {"pretrain.steps": steps, "pretrain.warmup_epochs": "auto", "pretrain.probe_every": steps}
    config = change(first, short, "--proxy-steps").pretrain
    weights: dict[Line, Artifact] = {}
    for label, row in rows.items():
        for fraction in (*FRACTIONS, 1.0):
            part = change(row, {"select.fraction": fraction, "select.count": None}, "--proxy-steps")
            if part.selects:  # the whole pool is one line for all, but for strategies that remove images
                weights[label, fraction] = _planned(plan(part, root), config, first)
    weights[WHOLE, 1.0] = _planned(
        {role: one for role, one in plan(first, root).items() if role != "subset"}, config, first
    )
    return ShortTrainings(steps, config.batch_size, weights)


def _planned(graph: Mapping[str, Artifact], config: Pretrain, first: Experiment) -> Artifact:
    return pretrain.plan(
        graph["pool"], graph.get("subset"), config, first.backbone, first.seed, first.resources, graph["target"]
    )
