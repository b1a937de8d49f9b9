"""The meaning of a pool's priorities: told while they are made, kept in the facts of their artifact, and read back."""

from typing import Any

from rich.markup import escape

from rayreid.console import Screen
from rayreid.execution.production import StageContext
from rayreid.selection.meaning import Diagnosis, Meaning, Separation, interpret
from rayreid.selection.registry import STRATEGIES, Strategy
from rayreid.storage.artifacts import Artifact

_FIGURES = "diagnosis"
TAG = "score_meaning"
"""Tag of the MLflow runs of a scoring, of its subsets and of the experiments that use them."""

_ADVICE = "see `rayreid selections` before you cut a subset by it"


def label_of(ranked: Artifact) -> str:
    """Return the name of an artifact's scores or priorities."""
    return strategy_of(ranked).label


def strategy_of(ranked: Artifact) -> Strategy:
    """Return the strategy by which an artifact's scores or priorities are made."""
    return STRATEGIES[ranked.fields.get("strategy", "cfs")]


def tell(
    context: StageContext, figures: Diagnosis, separation: Separation | None, told: Meaning | None = None
) -> Meaning:
    """Return the meaning of priorities, warn of it on the screen, and log it.

    Args:
        context: Context of the stage that makes the priorities.
        figures: Their figures.
        separation: How well they separate the target's own domain, if that is known.
        told: What the user was told before.
    """
    meaning, label = interpret(figures, separation), label_of(context.artifact)
    known = told.reasons if told else {}
    warn(context.screen, Meaning({r: reason for r, reason in meaning.reasons.items() if r not in known}), label)
    warnings = warnings_of(meaning, label)
    # An empty tag replaces the warning of an earlier call, which the rest of the pool did not confirm.
    context.run.tags({TAG: meaning.word, **({"warning": "; ".join(warnings)} if warnings or known else {})})
    return meaning


def warn(screen: Screen, meaning: Meaning, label: str) -> None:
    """Print a warning for each peculiarity, with advice: no subset has been cut by these priorities yet."""
    for warning in warnings_of(meaning, label):
        screen.say(f"    [yellow]warning:[/] {escape(warning)}; {_ADVICE}")


def warnings_of(meaning: Meaning, label: str) -> list[str]:
    """Return a line for each peculiarity."""
    return [f"{label}: {reason}" for reason in meaning.reasons.values()]


def show(screen: Screen, ranked: Artifact, separation: Separation | None, again: bool) -> None:
    """Print the figures of complete priorities and what they mean; nothing where no figures are computed.

    Args:
        screen: The screen to print to.
        ranked: The scores or priorities.
        separation: How well they separate the target's own domain, if that is known.
        again: Whether to repeat the warnings, which the stage prints when it makes the priorities.
    """
    if not strategy_of(ranked).diagnosed:
        return
    figures, meaning, label = figures_of(ranked), meaning_of(ranked, separation), label_of(ranked)
    if figures is None or meaning is None:
        screen.say(f"    {escape(label)}: made by a version that did not compute what scores mean")
        return
    known = {**figures.figures(), **({"auc": separation.auc} if separation else {})}
    screen.say(f"    {escape(label)}: {meaning.word} ({', '.join(f'{name} {known[name]:.3g}' for name in known)})")
    if again:
        warn(screen, meaning, label)


def facts_of(ranked: Artifact, figures: Diagnosis, meaning: Meaning) -> dict[str, Any]:
    """Return what an artifact's facts keep."""
    warnings = warnings_of(meaning, label_of(ranked))
    kept = {"meaning": meaning.word, _FIGURES: figures.figures()}
    return {**kept, "warnings": warnings} if warnings else kept


def figures_of(ranked: Artifact) -> Diagnosis | None:
    """Return the figures of complete priorities; None if they come from a version that did not compute them."""
    found = ranked.facts.get(_FIGURES)
    return Diagnosis(**found) if found else None


def meaning_of(ranked: Artifact, separation: Separation | None) -> Meaning | None:
    """Return the meaning of complete priorities; None if their artifact has no figures.

    Args:
        ranked: The scores or priorities.
        separation: How well they separate the target's own domain, as it is known now.
    """
    figures = figures_of(ranked)
    return interpret(figures, separation) if figures else None
