"""The making of a forecast: every artifact of some experiments is looked at, and nothing is started or written."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayreid.config import Experiment
from rayreid.errors import UserError, escaped
from rayreid.pipeline.forecast.causes import cause_of
from rayreid.pipeline.forecast.earlier_runs import EarlierRuns
from rayreid.pipeline.forecast.estimates import Estimate, Estimator
from rayreid.pipeline.forecast.forecast import Forecast, Step
from rayreid.pipeline.forecast.images import ImageCounts
from rayreid.pipeline.forecast.planned_machine import PlannedMachine
from rayreid.pipeline.forecast.standings import Standing, State, standing_of
from rayreid.pipeline.forecast.workloads import Workload, Workloads
from rayreid.pipeline.graph import plan
from rayreid.pipeline.preflight import check_settings, check_sources
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.storage.inventory import Inventory

_GPU_OF_THE_TABLE = PlannedMachine(cpus=16, gpus=1)
"""The machine of the figures for a GPU, to give GPU-hours where the run is planned for CPUs."""


def forecast(
    experiments: Mapping[str, Experiment],
    whole: Experiment,
    root: Path,
    machine: PlannedMachine,
    kind: str,
    side_by_side: int = 1,
) -> Forecast:
    """Return the forecast of some experiments that run as one; nothing is started or written.

    Args:
        experiments: The rows or trials by label.
        whole: The experiment of the file.
        root: The output root.
        machine: The machine to estimate for.
        kind: "experiment", "comparison" or "sweep".
        side_by_side: How many trainings run at a time.

    Raises:
        UserError: No row can be planned, or the machine cannot hold the workers.
    """
    with _damage_not_logged():
        graphs, refused = _graphs(experiments, root)
        inventory, counts = Inventory(root), ImageCounts()
        observer = _Observer(inventory, Workloads(counts), Estimator(machine, EarlierRuns(inventory, machine)))
        steps = [
            observer.step(role, artifact, users, experiments[users[0]]) for role, artifact, users in _distinct(graphs)
        ]
        missing = [f"{fault}{_published_note(store, counts, steps)}" for store, fault in counts.faults.items()]
        notes = [*missing, *_refusal(experiments, graphs, counts.faults.values())]
    return Forecast(
        whole.name,
        root,
        kind,
        tuple(experiments),
        tuple(steps),
        machine,
        side_by_side,
        tuple(dict.fromkeys(notes)),
        unplanned=tuple(refused),
    )


@contextlib.contextmanager
def _damage_not_logged() -> Iterator[None]:
    """Keep the damage of artifacts, which whoever asks whether they are complete logs, to the forecast alone."""
    logger = logging.getLogger("rayreid")

    def kept(record: logging.LogRecord) -> bool:
        return "this artifact is damaged" not in record.getMessage()

    logger.addFilter(kept)
    try:
        yield
    finally:
        logger.removeFilter(kept)


@dataclass(frozen=True)
class _Observer:
    """Looks at one artifact after another."""

    inventory: Inventory
    workloads: Workloads
    estimator: Estimator

    def step(self, role: str, artifact: Artifact, users: Sequence[str], experiment: Experiment) -> Step:
        standing = standing_of(artifact)
        if standing.state is State.REUSED:
            return Step(role, artifact, tuple(users), standing)
        cause = cause_of(artifact, self.inventory)
        try:
            work = self.workloads.of(artifact)
            estimate = self.estimator.of(role, artifact, work, experiment)
            on_gpu = None if self.estimator.machine.gpus else self._on_gpu(role, artifact, work, experiment)
        except UserError as error:
            return Step(role, artifact, tuple(users), standing, cause, unknown=escaped(str(error)))
        left = _left(standing, work)
        return Step(
            role,
            artifact,
            tuple(users),
            standing,
            cause,
            work,
            estimate.of_the_rest(left, artifact.stage),
            on_gpu.of_the_rest(left, artifact.stage) if on_gpu else None,
        )

    def _on_gpu(self, role: str, artifact: Artifact, work: Workload, experiment: Experiment) -> Estimate | None:
        if experiment.resources.gpu is False:
            return None
        one = experiment.model_copy(
            update={"resources": experiment.resources.model_copy(update={"workers": 1, "cpus_per_worker": "auto"})}
        )
        return Estimator(_GPU_OF_THE_TABLE, EarlierRuns(self.inventory, _GPU_OF_THE_TABLE)).of(
            role, artifact, work, one
        )


def _graphs(experiments: Mapping[str, Experiment], root: Path) -> tuple[dict[str, Mapping[str, Artifact]], list[str]]:
    """Return the graphs of the experiments that can be planned, and why the others cannot.

    Raises:
        UserError: None can be planned.
    """
    graphs: dict[str, Mapping[str, Artifact]] = {}
    refused: dict[str, list[str]] = {}
    for label, experiment in experiments.items():
        try:
            graphs[label] = plan(experiment, root)
        except UserError as error:
            refused.setdefault(str(error), []).append(label)
    if not graphs:
        raise UserError(next(iter(refused)) if refused else "the file has no row or trial")
    return graphs, [f"{', '.join(map(escaped, labels))}: {error}" for error, labels in refused.items()]


def _distinct(
    graphs: Mapping[str, Mapping[str, Artifact]],
) -> Iterable[tuple[str, Artifact, list[str]]]:
    """Yield every artifact of some experiments once, inputs first: its first role, itself, and who needs it."""
    found: dict[str, tuple[str, Artifact, list[str]]] = {}
    for label, graph in graphs.items():
        named = {artifact.id: role for role, artifact in graph.items()}
        for identifier, artifact in lineage(graph).items():
            step = found.setdefault(identifier, (named.get(identifier, artifact.stage), artifact, []))
            step[-1].append(label)
    return found.values()


def _left(standing: Standing, work: Workload) -> float:
    """Return the share of the work that a half-made artifact still needs."""
    whole = work.steps if standing.unit == "steps" else work.images
    return max(0.0, 1 - standing.done / whole) if standing.done and whole else 1.0


def _published_note(store: str, counts: ImageCounts, steps: Iterable[Step]) -> str:
    """Return what is estimated although a dataset is missing."""
    artifact = next((one.artifact for one in steps if one.artifact.id == store), None)
    found = counts.of(artifact) if artifact else None
    if found is None:
        return "; what depends on its size is not estimated"
    return f"; its published size is assumed, {found.total:,} images"


def _refusal(
    experiments: Mapping[str, Experiment], graphs: Mapping[str, Mapping[str, Artifact]], known: Iterable[str]
) -> list[str]:
    """Return why a run would be refused before it starts anything, as far as that can be told without Ray."""
    planned = [experiments[label] for label in graphs]
    try:
        check_settings(planned, graphs, weights=False)
        check_sources(planned, graphs)
    except UserError as error:
        text = str(error)
        return [] if text in known else [f"rayreid run would refuse this: {text}"]
    return []
