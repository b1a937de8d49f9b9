"""The tags of MLflow by which experiments, rows and trials are compared."""

from collections.abc import Sequence
from typing import Any

from rayreid.config import Experiment
from rayreid.pipeline.budget import NO_BUDGET, budget_note, budget_of
from rayreid.pipeline.summary import Row

COLUMNS = ("strategy", "fraction", "stem", "backbone", "method", "adapt", "seed")
"""Names of the tags and parameters by which runs are compared; every experiment's run has all of them."""


def tags_of(experiment: Experiment) -> dict[str, Any]:
    """Return the tags by which runs are compared."""
    share = "count" if experiment.select.share is None else experiment.select.share
    return {
        "backbone": experiment.backbone.name,
        "stem": experiment.backbone.stem,
        "method": experiment.pretrain.method,
        "strategy": experiment.select.strategy if experiment.selects else "none",
        "fraction": 0 if experiment.pretrain.method == "none" else share,
        "target": experiment.target.dataset,
        "adapt": experiment.adapt.method,
        "seed": experiment.seed,
        "budget": budget_of(experiment),
    }


def common_tags(experiment: Experiment) -> dict[str, Any]:
    """Return the tags that apply to several experiments together, without those in which these differ."""
    tags = tags_of(experiment)
    return {name: tags[name] for name in ("backbone", "target")}


def shared_tags(experiment: Experiment) -> dict[str, Any]:
    """Return the tags of stages that several experiments share."""
    return common_tags(experiment) | {"shared": "true"}


def budget_tags(results: Sequence[Row]) -> dict[str, str]:
    """Return the tags that say how long the rows of a comparison were pre-trained, and what they share."""
    trained = [(row.budget, row.steps) for row in results if row.budget != NO_BUDGET]
    note = budget_note(trained)
    budgets = ", ".join(dict.fromkeys(budget for budget, _ in trained)) or NO_BUDGET
    return {"budget": budgets, **({"budget.shared": note} if note else {})}
