"""Outcome of a sweep: its trials with their artifacts and errors, and the table at its end."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.markup import escape

from rayreid.config import Experiment
from rayreid.console import Screen
from rayreid.pipeline.summary import Row, row_of, show_table, show_times
from rayreid.storage.artifacts import Artifact

Plans = Mapping[str, Mapping[str, Artifact]]
"""The artifacts of several experiments: label → role → artifact."""


@dataclass(frozen=True)
class SweepOutcome:
    """Trials of a sweep after it has run.

    Attributes:
        trials: The experiments by label; for a search, only those that have finished.
        plans: The artifacts of these experiments.
        failures: Errors of the failed trials, by label.
    """

    trials: Mapping[str, Experiment]
    plans: Plans
    failures: Mapping[str, str]

    def rows(self) -> list[Row]:
        """Return the results of the trials that have one."""
        return [
            row_of(label, self.trials[label], graph) for label, graph in self.plans.items() if graph["metrics"].complete
        ]

    def show(self, screen: Screen, rows: list[Row], stopped: Mapping[str, str]) -> None:
        """Print the table, the time by stage, and why trials have no result.

        Args:
            screen: The screen to print to.
            rows: The results; see `rows`.
            stopped: Reasons of the trials that were stopped early, by label.
        """
        show_table(screen, rows)
        show_times(screen, self.plans.values())
        for label, error in self.failures.items():
            screen.say(f"[red]failed[/] {escape(label)}: {escape(error)}")
        for label, why in stopped.items():
            screen.say(f"[yellow]ended early[/] {escape(label)}: {escape(why)}")
