"""The budget of a pre-training, and whether the rows of a table share their epochs or their steps."""

from collections.abc import Iterable

from rayreid.config import Experiment

NO_BUDGET = "none"
"""Budget of an experiment without pre-training."""


def budget_of(experiment: Experiment) -> str:
    """Return the length of the pre-training as the file gives it, `epochs=12` or `steps=630`; `NO_BUDGET` if none."""
    pretrain = experiment.pretrain
    if pretrain.method == "none":
        return NO_BUDGET
    return f"epochs={pretrain.epochs}" if pretrain.steps is None else f"steps={pretrain.steps}"


def budget_note(spent: Iterable[tuple[str, int]]) -> str:
    """Return in a sentence whether pre-trainings share their epochs or their steps; empty if nothing can be compared.

    Args:
        spent: Budget (see `budget_of`) and number of optimizer steps of each pre-training; others are left out.
    """
    trained = [(budget, steps) for budget, steps in spent if budget != NO_BUDGET]
    if len(trained) < 2:
        return ""
    budgets = list(dict.fromkeys(budget for budget, _ in trained))
    epochs = ", ".join(budget.partition("=")[2] for budget in budgets)
    by_epochs = all(budget.startswith("epochs=") for budget in budgets)
    least, most = min(steps for _, steps in trained), max(steps for _, steps in trained)
    steps, same_steps = (f"{most:,}" if least == most else f"{least:,} to {most:,}"), least == most
    if len(budgets) == 1 and by_epochs:
        return f"rows share their epochs ({epochs}){' and' if same_steps else ', not'} their steps ({steps})"
    if same_steps:
        return f"rows share their steps ({steps}){f', not their epochs ({epochs})' if by_epochs else ''}"
    return f"rows share neither epochs nor steps ({', '.join(budgets)}: {steps} steps)"
