"""Trials of a search, which are not known beforehand: experiments at the ends of its ranges stand for them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SearchedKey:
    """A key that a search varies.

    Attributes:
        labels: Labels of the experiments in which this key alone varies.
        values: Number of its values; None if it is a range, of which no two trials draw the same value.
    """

    labels: frozenset[str]
    values: int | None


@dataclass(frozen=True)
class Draws:
    """What the trials need of a role.

    Attributes:
        made: Number of artifacts.
        shares: For each experiment, the share of the trials for which it stands.
    """

    made: int
    shares: Mapping[str, float]

    def share(self, users: Iterable[str]) -> float:
        """Return the share of the trials for which some experiments stand."""
        return sum(self.shares.get(label, 0.0) for label in users)


@dataclass(frozen=True)
class StandIns:
    """What the ends of a search's ranges tell about its trials.

    Attributes:
        trials: Number of trials.
        keys: The keys of the search.
    """

    trials: int
    keys: tuple[SearchedKey, ...]

    def draws(self, users: Sequence[Iterable[str]], planned: frozenset[str]) -> Draws:
        """Return what the trials need of a role: as many artifacts as there are combinations of what it depends on.

        Args:
            users: The labels of the experiments that share an artifact, for each artifact of the role.
            planned: The labels of all experiments that could be planned.
        """
        keys = [key for key in self.keys if not any((key.labels & planned).issubset(labels) for labels in users)]
        made = math.prod(key.values or math.inf for key in keys)
        # In the ends of the other keys it is always the same one, or always missing, which would count too often. Of a
        # key in the ends of which it is missing, nothing tells whether it depends on that: more made than needed is
        # the safer estimate.
        needing = frozenset(label for labels in users for label in labels)
        ends = [key.labels & planned for key in keys if key.labels & needing] or [planned]
        shares: dict[str, float] = defaultdict(float)
        for labels in ends:
            for label in labels:
                shares[label] += 1 / len(labels) / len(ends)
        return Draws(int(min(self.trials, made)), shares)
