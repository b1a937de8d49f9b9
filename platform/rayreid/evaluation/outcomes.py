"""Outcomes of many experiments, grouped over their seeds and compared with their costs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

WHOLE, NOTHING = "whole pool", "no pre-training"
SETTINGS = ("backbone", "stem", "method", "adapt")


@dataclass(frozen=True)
class Outcome:
    """The scores and costs of one experiment.

    Attributes:
        label: Name of the experiment.
        backbone: Name of the backbone.
        stem: Name of the stem.
        method: Pre-training method.
        adapt: Adaptation method.
        strategy: Selection strategy; "none" if nothing was selected (the whole pool, or no pre-training).
        fraction: Fraction of the pool in (0, 1]; 0 without pre-training; None if a number of images was given.
        images: Number of images pre-trained on.
        seed: Seed of the experiment.
        scores: mAP, rank1 and others in [0, 1].
        gpu_hours: GPU-hours of its own pre-training, fine-tuning, adaptation and evaluation.
        hours: Duration of the same stages in hours.
        extras: Other keys in which the experiments differ, e.g. {"finetune.lr": "0.01"}.
        result: Identifier of the measurement; two experiments with the same measurement count once.
    """

    label: str
    backbone: str
    stem: str
    method: str
    adapt: str
    strategy: str
    fraction: float | None
    images: int
    seed: str
    scores: Mapping[str, float]
    gpu_hours: float
    hours: float
    extras: Mapping[str, str] = field(default_factory=dict)
    result: str = ""

    @property
    def part(self) -> str:
        """Return a description of the part of the pool that it was pre-trained on."""
        if self.fraction == 0:
            return NOTHING
        if self.fraction == 1:
            return WHOLE
        size = f"{self.images:,} images" if self.fraction is None else f"{100 * self.fraction:g} %"
        return f"{self.strategy} {size}"


@dataclass(frozen=True)
class Group:
    """Experiments that differ only in their seeds.

    Attributes:
        members: Their distinct outcomes, at least one.
    """

    members: tuple[Outcome, ...]

    @property
    def first(self) -> Outcome:
        """Return one of the members, for the values that all have in common."""
        return self.members[0]

    def values(self, name: str) -> np.ndarray:
        """Return a score or cost of each member, float64 (n,)."""
        return np.array([one.scores[name] if name in one.scores else getattr(one, name) for one in self.members])

    def mean(self, name: str) -> float:
        """Return the mean over the members."""
        return float(self.values(name).mean())

    def std(self, name: str) -> float:
        """Return the standard deviation over the members (n − 1 in the denominator); NaN for a single one."""
        return float(self.values(name).std(ddof=1)) if len(self.members) > 1 else math.nan


def grouped(outcomes: Iterable[Outcome]) -> list[Group]:
    """Return groups of outcomes that differ only in the seed, in the order of their first appearance."""
    found: dict[tuple[object, ...], dict[str, Outcome]] = {}
    for one in outcomes:
        size = one.images if one.fraction is None else one.fraction
        extras = tuple(sorted(one.extras.items()))
        key = (one.backbone, one.stem, one.method, one.adapt, one.strategy, size, extras)
        found.setdefault(key, {}).setdefault(one.result or f"{one.label} {one.seed}", one)
    return [Group(tuple(members.values())) for members in found.values()]


def names_of(groups: Sequence[Group], fields: Sequence[str] = SETTINGS, told: str = "part") -> list[str]:
    """Return a name for each group, from those of `fields` that differ; `told` and extras are always included."""
    differing = [name for name in fields if len({getattr(group.first, name) for group in groups}) > 1]
    names = []
    for group in groups:
        words = [str(getattr(group.first, name)) for name in differing if getattr(group.first, name) != "none"]
        extras = [f"{key}={value}" for key, value in group.first.extras.items()]
        names.append(", ".join([*words, getattr(group.first, told), *extras]))
    return names


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Return the indices of the Pareto front: points with a higher value than any other of lower or equal cost.

    Args:
        costs: (n,), the lower the better.
        values: (n,), the higher the better.

    Returns:
        The indices by rising cost; of equal points, only the first.
    """
    best, front = -math.inf, []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i], i)):
        if values[i] > best:
            best = values[i]
            front.append(i)
    return front


@dataclass(frozen=True)
class Curve:
    """A score over the fraction of the pool, for one strategy and otherwise equal settings.

    Attributes:
        name: Name that distinguishes it from the other curves.
        strategy: Selection strategy.
        points: Groups by rising fraction. The whole pool, in which every strategy ends, is the last if it was run.
    """

    name: str
    strategy: str
    points: tuple[Group, ...]

    @property
    def fractions(self) -> list[float]:
        """Return the fractions of the pool, in (0, 1]."""
        return [float(group.first.fraction or 0) for group in self.points]

    def at(self, fraction: float) -> Group | None:
        """Return the point at a fraction, or None if there is none."""
        return next((group for group in self.points if group.first.fraction == fraction), None)


def curves(groups: Sequence[Group]) -> list[Curve]:
    """Return the curves on which some groups lie: those with a fraction in (0, 1), and the whole pool at their end."""
    ends = {_setting(group): group for group in groups if group.first.fraction == 1}
    lines: dict[tuple[object, ...], list[Group]] = {}
    for group in groups:
        if group.first.fraction not in (None, 0, 1):
            lines.setdefault((_setting(group), group.first.strategy), []).append(group)
    firsts = [members[0] for members in lines.values()]
    made = []
    for name, ((setting, strategy), members) in zip(names_of(firsts, told="strategy"), lines.items(), strict=True):
        points = sorted(members, key=lambda group: group.first.fraction or 0)
        made.append(Curve(name, str(strategy), (*points, *([ends[setting]] if setting in ends else []))))
    return made


def _setting(group: Group) -> tuple[object, ...]:
    """Return all settings except selection and seed."""
    one = group.first
    return (one.backbone, one.stem, one.method, one.adapt, tuple(sorted(one.extras.items())))
