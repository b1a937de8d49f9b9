"""The forecast of an experiment file: every artifact, what a run would do about it and why, and what that costs."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rayreid.pipeline.forecast.causes import Cause
from rayreid.pipeline.forecast.estimates import Estimate
from rayreid.pipeline.forecast.figures import COMMAND_SECONDS
from rayreid.pipeline.forecast.planned_machine import PlannedMachine
from rayreid.pipeline.forecast.side_by_side import Schedule, Task, scheduled
from rayreid.pipeline.forecast.spans import NOTHING, Span, total
from rayreid.pipeline.forecast.stand_ins import Draws, StandIns
from rayreid.pipeline.forecast.standings import Standing, State
from rayreid.pipeline.forecast.workloads import Workload
from rayreid.storage.artifacts import Artifact, lineage


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
        searched: What the experiments tell about the trials of a search, if they only stand for these.
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
    searched: StandIns | None = None

    @property
    def trials(self) -> int:
        """Return how many rows or trials there are."""
        return self.searched.trials if self.searched else len(self.labels)

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
        """Return how many artifacts a step stands for; those of a role have the mean cost of its steps."""
        if self.searched is None:
            return 1.0
        draws = self._draws[step.role]
        return draws.made * draws.share(step.users)

    @cached_property
    def _draws(self) -> Mapping[str, Draws]:
        """Return what the trials of a search need of each role."""
        assert self.searched is not None
        users: dict[str, list[tuple[str, ...]]] = {}
        for step in self.steps:
            users.setdefault(step.role, []).append(step.users)
        planned = frozenset(label for step in self.steps for label in step.users)
        return {role: self.searched.draws(found, planned) for role, found in users.items()}

    def _on_gpus(self) -> Iterable[tuple[Estimate, float]]:
        for step in self.to_make:
            found = step.estimate if self.machine.gpus else step.on_gpu
            if found is not None:
                yield found, self._times(step)

    def _scheduled(self, end: str) -> Schedule:
        if self.searched:
            return self._searched(end, self.searched.trials)
        return scheduled(
            {step.artifact.id: Task(_seconds(step, end), _needs(step)) for step in self.to_make}, self.places
        )

    def _searched(self, end: str, trials: int) -> Schedule:
        """Return the schedule of all trials of a search; an artifact begins when that begins for which it stands."""
        roles = {step.artifact.id: step.role for step in self.steps}
        cost, needs = dict.fromkeys((step.role for step in self.to_make), 0.0), {}
        for step in self.to_make:
            cost[step.role] += _seconds(step, end) * self._draws[step.role].share(step.users)
            needs[step.role] = {roles[one] for one in _needs(step)}
        tasks = {
            _name(role, number): Task(
                seconds, frozenset(_name(one, number % self._draws[one].made) for one in needs[role])
            )
            for number in range(trials)
            for role, seconds in cost.items()
            if number < self._draws[role].made
        }
        found = scheduled(tasks, self.places)
        nth = Counter[str]()
        begins = {}
        for step in self.to_make:
            begins[step.artifact.id] = found.begins[_name(step.role, nth[step.role] % self._draws[step.role].made)]
            nth[step.role] += 1
        return Schedule(begins, found.seconds)


def _seconds(step: Step, end: str) -> float:
    return float(getattr(step.estimate.seconds, end)) if step.estimate else 0.0


def _needs(step: Step) -> frozenset[str]:
    """Return the ids of all artifacts that have to be there before one is made."""
    return frozenset(lineage({**step.artifact.inputs, **step.artifact.auxiliary}))


def _name(role: str, number: int) -> str:
    return f"{role} {number}"
