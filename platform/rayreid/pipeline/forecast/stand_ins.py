"""Trials of a search, which are not known beforehand: experiments at the ends of its ranges stand for them."""

import math
from collections.abc import Iterable, Sequence
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
class StandIns:
    """What the ends of a search's ranges tell about its trials.

    Attributes:
        trials: Number of trials.
        keys: The keys of the search.
    """

    trials: int
    keys: tuple[SearchedKey, ...]

    def made(self, users: Sequence[Iterable[str]], planned: frozenset[str]) -> int:
        """Return how many artifacts of a role the trials need: as many as there are combinations of what it depends on.

        Args:
            users: The labels of the experiments that share an artifact, for each artifact of the role.
            planned: The labels of all experiments that could be planned.
        """
        count = 1.0
        for key in self.keys:
            if not any((key.labels & planned).issubset(labels) for labels in users):  # it depends on the key
                count *= key.values or math.inf
        return int(min(self.trials, count))
