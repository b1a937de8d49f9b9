"""What a sweep came to: its trials with their artifacts and errors, and the table at its end."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.markup import escape

from rayreid.config import Experiment
from rayreid.console import Screen
from rayreid.pipeline.summary import Row, row_of, show_table, show_times
from rayreid.selection.provenance import provenance_of
from rayreid.storage.artifacts import Artifact

Plans = Mapping[str, Mapping[str, Artifact]]
"""The artifacts of several experiments: label → role → artifact."""


@dataclass(frozen=True)
class SweepOutcome:
    """The trials of a sweep after it has run.

    Attributes:
        trials: The experiments by label; of a search those that have finished.
        plans: Their artifacts.
        failures: Label → error of the trials that failed.
    """

    trials: Mapping[str, Experiment]
    plans: Plans
    failures: Mapping[str, str]

    def rows(self) -> list[Row]:
        """Return the results of the trials that have any."""
        return [
            row_of(label, graph, provenance_of(self.trials[label].pool))
            for label, graph in self.plans.items()
            if graph["metrics"].complete
        ]

    def show(self, screen: Screen, rows: list[Row], stopped: Mapping[str, str]) -> None:
        """Show the table, the time by stage, and why trials have no result.

        Args:
            screen: Where to show them.
            rows: The results; see `rows`.
            stopped: Label → reason of the trials that were ended early.
        """
        show_table(screen, rows)
        show_times(screen, self.plans.values())
        for label, error in self.failures.items():
            screen.say(f"[red]failed[/] {escape(label)}: {escape(error)}")
        for label, why in stopped.items():
            screen.say(f"[yellow]ended early[/] {escape(label)}: {escape(why)}")
