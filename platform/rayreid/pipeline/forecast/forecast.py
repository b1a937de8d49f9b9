"""The forecast of an experiment file: every artifact, what a run would do about it and why, and what that costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rayreid.config import Experiment
from rayreid.errors import UserError, escaped
from rayreid.pipeline.forecast.causes import Cause, cause_of
from rayreid.pipeline.forecast.earlier_runs import EarlierRuns
from rayreid.pipeline.forecast.estimates import Estimate, Estimator
from rayreid.pipeline.forecast.figures import COMMAND_SECONDS
from rayreid.pipeline.forecast.images import ImageCounts
from rayreid.pipeline.forecast.planned_machine import PlannedMachine
from rayreid.pipeline.forecast.side_by_side import Schedule, Task, scheduled
from rayreid.pipeline.forecast.spans import NOTHING, Span, total
from rayreid.pipeline.forecast.standings import Standing, State, standing_of
from rayreid.pipeline.forecast.workloads import Workload, Workloads
from rayreid.pipeline.graph import plan
from rayreid.pipeline.preflight import check_settings, check_sources
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.storage.inventory import Inventory

_GPU_OF_THE_TABLE = PlannedMachine(cpus=16, gpus=1)
"""The machine of the figures for a GPU, to give GPU-hours where the run is planned for CPUs."""


@dataclass(frozen=True)
class Step:
    """What a run would do about one artifact.

    Attributes:
        role: Its role in the first experiment that needs it.
        artifact: The artifact.
        users: Labels of the experiments that need it.
        standing: How far it is.
        cause: What differs from the nearest complete one; None if it is reused, or if there is none of its stage.
        work: Its work; None if a dataset is missing that decides it.
        estimate: What is left to make of it costs; None if `work` is None or it is reused.
        on_gpu: The same on one GPU, where the forecast is for CPUs.
        unknown: Why there is no estimate.
    """

    role: str
    artifact: Artifact
    users: tuple[str, ...]
    standing: Standing
    cause: Cause | None = None
    work: Workload | None = None
    estimate: Estimate | None = None
    on_gpu: Estimate | None = None
    unknown: str = ""

    @property
    def shared(self) -> bool:
        """Return whether several experiments need it."""
        return len(self.users) > 1

    @property
    def first(self) -> bool:
        """Return whether it is made for no other reason than that nothing like it is here."""
        standing = self.standing
        return standing.state is State.MADE and self.cause is None and not (standing.fault or standing.running)


@dataclass(frozen=True)
class Forecast:
    """What a run of a file would do.

    Attributes:
        name: The experiment's name.
        root: The output root.
        kind: "experiment", "comparison" or "sweep".
        labels: Labels of its rows or trials, in order.
        steps: Every artifact that it needs, inputs first, each once.
        machine: The machine that the estimates are for.
        places: How many trainings run side by side.
        notes: Lines for the user: datasets that are missing, rows that cannot be planned, why a run would be refused.
        unplanned: Rows that cannot be planned, and why.
        trials: How many of the experiments run in all, where `labels` only stand for them; 0: those of `labels`.
    """

    name: str
    root: Path
    kind: str
    labels: tuple[str, ...]
    steps: tuple[Step, ...]
    machine: PlannedMachine
    places: int = 1
    notes: tuple[str, ...] = ()
    unplanned: tuple[str, ...] = ()
    trials: int = 0

    @property
    def repeats(self) -> float:
        """Return how often what only one experiment needs is made: labels may stand for the trials of a search."""
        return self.trials / len(self.labels) if self.trials and self.labels else 1.0

    @property
    def to_make(self) -> list[Step]:
        """Return the artifacts that a run would make, or go on with."""
        return [step for step in self.steps if step.standing.state is not State.REUSED]

    @property
    def unknown(self) -> list[Step]:
        """Return those of which the cost is not known."""
        return [step for step in self.to_make if step.estimate is None]

    def count(self, state: State) -> int:
        """Return how many artifacts are in a state."""
        return sum(step.standing.state is state for step in self.steps)

    @cached_property
    def schedule(self) -> Schedule:
        """Return when the artifacts are made, by their ids, at the likely durations."""
        return self._scheduled("likely")

    @property
    def seconds(self) -> Span:
        """Return the duration of the whole run, as far as it is known; nothing if there is nothing to make."""
        if not self.to_make:
            return NOTHING
        ends = Span(*(self._scheduled(name).seconds for name in ("low", "likely", "high")))
        return ends + COMMAND_SECONDS

    @property
    def gpu_hours(self) -> Span:
        """Return the GPU-hours of all stages, on the machine, or on one GPU if it has none."""
        return total(estimate.gpu_hours * times for estimate, times in self._on_gpus())

    @property
    def disk(self) -> Span:
        """Return the bytes that the run adds to the output root."""
        return total(step.estimate.disk * self._times(step) for step in self.to_make if step.estimate)

    @property
    def from_table(self) -> bool:
        """Return whether any duration was estimated from figures of other machines."""
        return any(step.estimate.basis == "table" for step in self.to_make if step.estimate)

    @property
    def earlier_runs(self) -> int:
        """Return how many durations were estimated from earlier runs."""
        return sum(step.estimate.basis == "earlier runs" for step in self.to_make if step.estimate)

    def own(self, label: str) -> list[Step]:
        """Return the artifacts that only one experiment needs."""
        return [step for step in self.steps if step.users == (label,)]

    def _times(self, step: Step) -> float:
        return 1.0 if len(step.users) == len(self.labels) else self.repeats

    def _on_gpus(self) -> Iterable[tuple[Estimate, float]]:
        for step in self.to_make:
            found = step.estimate if self.machine.gpus else step.on_gpu
            if found is not None:
                yield found, self._times(step)

    def _scheduled(self, end: str) -> Schedule:
        tasks = {}
        for step in self.to_make:
            needs = lineage({**step.artifact.inputs, **step.artifact.auxiliary}).keys()
            seconds = getattr(step.estimate.seconds, end) if step.estimate else 0.0
            tasks[step.artifact.id] = Task(seconds * self._times(step), frozenset(needs))
        return scheduled(tasks, self.places)


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
    graphs, refused = _graphs(experiments, root)
    inventory, counts = Inventory(root), ImageCounts()
    observer = _Observer(inventory, Workloads(counts), Estimator(machine, EarlierRuns(inventory, machine)))
    steps = [observer.step(role, artifact, users, experiments[users[0]]) for role, artifact, users in _distinct(graphs)]
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
        check_settings(planned, graphs)
        check_sources(planned, graphs)
    except UserError as error:
        text = str(error)
        return [] if text in known else [f"rayreid run would refuse this: {text}"]
    return []
