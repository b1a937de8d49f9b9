"""The trials of a sweep: its experiments, as far as they are known before any of them has run."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rayreid.config import Experiment, Range, Sweep
from rayreid.config.loading import change, describe
from rayreid.errors import UserError

_DIGITS = 4
"""Significant digits of a drawn number: enough for a search, few enough to read and to copy."""
_DRAWS = 50
"""Number of draws per trial before the search space counts as exhausted."""


def sweep_of(experiment: Experiment) -> Sweep:
    """Return the section `sweep`.

    Raises:
        UserError: The experiment has no such section.
    """
    if experiment.sweep is None:
        raise UserError(f"experiment {experiment.name!r} has no section sweep: name keys under sweep.parameters")
    return experiment.sweep


def trials(experiment: Experiment) -> dict[str, Experiment]:
    """Return the experiments of a sweep by label: all combinations of a grid, or reproducible random draws.

    An Optuna search has none beforehand, because each of its trials depends on earlier ones.

    Raises:
        UserError: There is no section `sweep`, or a key or value is not valid in an experiment.
    """
    sweep = sweep_of(experiment)
    if sweep.search == "optuna":
        return {}
    combinations = _drawn(sweep) if sweep.search == "random" else _all(sweep)
    return {describe(changes): trial(experiment, changes) for changes in combinations}


def trial(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Return one experiment of a sweep.

    Raises:
        UserError: A key or value is not valid in an experiment.
    """
    return change(experiment.alone, changes, "sweep.parameters")


def corners(experiment: Experiment) -> list[Experiment]:
    """Return one experiment per value or bound of each key, so that a search can be checked beforehand.

    Raises:
        UserError: A key or value is not valid in an experiment.
    """
    return [one for ends in corners_by_key(experiment).values() for one in ends]


def corners_by_key(experiment: Experiment) -> dict[str, list[Experiment]]:
    """Return the experiments of `corners` by the key of which they have a value or bound."""
    ends = {key: _ends(values) for key, values in sweep_of(experiment).parameters.items()}
    first = {key: values[0] for key, values in ends.items()}
    return {key: [trial(experiment, {**first, key: value}) for value in values] for key, values in ends.items()}


def rounded(value: float) -> float:
    """Round a drawn number to the digits that trials use."""
    if value == 0:
        return 0.0
    return round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))


def _all(sweep: Sweep) -> list[dict[str, Any]]:
    values = [one for one in sweep.parameters.values() if isinstance(one, list)]
    return [dict(zip(sweep.parameters, combination, strict=True)) for combination in itertools.product(*values)]


def _drawn(sweep: Sweep) -> list[dict[str, Any]]:
    """Draw `sweep.trials` distinct combinations, or fewer if the space has no more."""
    generator = np.random.default_rng(sweep.seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_DRAWS * (sweep.trials or 0)):
        drawn = {key: _draw(generator, values) for key, values in sweep.parameters.items()}
        found.setdefault(describe(drawn), drawn)
        if len(found) == sweep.trials:
            break
    return list(found.values())


def _draw(generator: np.random.Generator, values: list[Any] | Range) -> Any:
    if isinstance(values, list):
        return values[int(generator.integers(len(values)))]
    if values.loguniform is not None:
        low, high = values.loguniform
        return rounded(math.exp(generator.uniform(math.log(low), math.log(high))))
    assert values.uniform is not None
    return rounded(float(generator.uniform(*values.uniform)))


def _ends(values: list[Any] | Range) -> list[Any]:
    if isinstance(values, list):
        return values
    low, high = values.uniform or values.loguniform or (0, 0)
    return [low, high, rounded(low + (high - low) / math.pi)]  # an integer key refuses the last one
