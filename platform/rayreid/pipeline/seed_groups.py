"""Rows of a file that were run with several seeds: mean, standard deviation, and the difference to a baseline row."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from rayreid.console import Screen, clock
from rayreid.errors import UserError
from rayreid.evaluation.comparison import Comparison, align, compare_seeds
from rayreid.evaluation.stored import read_queries
from rayreid.pipeline.summary import LEAK_MARK, Row, columns_of, show_notes
from rayreid.storage.artifacts import Artifact
from rayreid.tracking.names import slug


@dataclass(frozen=True)
class SeedGroup:
    """The outcomes of one row of the file.

    Attributes:
        label: The row's label in the file.
        runs: One outcome per seed, at least one.
        against: Label of the baseline row.
        gain: Difference of mAP to the baseline, with its interval; None for the baseline itself, and for a row that
            was evaluated on another target.
    """

    label: str
    runs: tuple[Row, ...]
    against: str
    gain: Comparison | None

    def values(self, name: str) -> list[float]:
        """Return a metric of every seed that has it."""
        return [metrics[name] for metrics in (run.metrics() for run in self.runs) if name in metrics]

    def mean(self, name: str) -> float:
        """Return the mean of a metric over the seeds."""
        return statistics.fmean(self.values(name))

    def std(self, name: str) -> float | None:
        """Return the standard deviation over the seeds (n − 1 in the denominator); None for a single seed."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else None

    def metrics(self) -> dict[str, float]:
        """Return the means of all metrics, the standard deviations of the scores, and the difference."""
        found = {name: self.mean(name) for name in self.runs[0].metrics()}
        found |= {f"{name}_std": std for name in self.runs[0].scores if (std := self.std(name)) is not None}
        if self.gain is not None:
            gain = self.gain
            found |= {"mAP_gain": gain.difference, "mAP_gain_low": gain.low, "mAP_gain_high": gain.high}
        return found

    def content(self) -> dict[str, Any]:
        """Return the group as an entry of `results.json`."""
        runs = [{"label": run.label, "seed": run.seed, **run.metrics()} for run in self.runs]
        baseline = {} if self.gain is None else {"against": self.against, "confidence": self.gain.confidence}
        return {"label": self.label, **self.metrics(), **baseline, "runs": runs}


def baseline_of(labels: Iterable[str], against: str | None) -> str:
    """Return the label of the row that the others are compared with: the named one, or the first.

    Raises:
        UserError: No row has the label.
    """
    known = list(dict.fromkeys(labels))
    if against is not None and against not in known:
        raise UserError(f"--against {against}: no row has this label; there are: {', '.join(known)}")
    return known[0] if against is None else against


def grouped(
    results: Sequence[Row], labels: Mapping[str, str], plans: Mapping[str, Mapping[str, Artifact]], against: str
) -> list[SeedGroup]:
    """Return the rows of the file with their outcomes, compared with a baseline row.

    Args:
        results: The outcomes, all with the same seeds for each row.
        labels: The row's label by the outcome's; see `row_labels`.
        plans: The artifacts by the outcome's label and role, all complete.
        against: Label of the baseline row.
    """
    members: dict[str, list[Row]] = {}
    for one in results:
        members.setdefault(labels[one.label], []).append(one)
    graphs = {label: [plans[one.label] for one in runs] for label, runs in members.items()}
    return [
        SeedGroup(label, tuple(runs), against, _gain(graphs[against], graphs[label]) if label != against else None)
        for label, runs in members.items()
    ]


def _gain(baseline: Sequence[Mapping[str, Artifact]], compared: Sequence[Mapping[str, Artifact]]) -> Comparison | None:
    """Return by how much one row's mAP is higher than that of the baseline; None if their targets differ."""
    graphs = [*baseline, *compared]
    if len({graph["target"].id for graph in graphs}) > 1:
        return None
    keys, found = zip(*(read_queries(graph["metrics"].path) for graph in graphs), strict=True)
    precision = np.array(align(keys, found))
    return compare_seeds(precision[: len(baseline)], precision[len(baseline) :])


def parent_metrics(groups: Iterable[SeedGroup]) -> dict[str, float]:
    """Return the metrics of the comparison's MLflow run: mAP and Rank-1 of every row, and the differences in mAP."""
    shown = ("mAP", "mAP_std", "rank1", "rank1_std", "mAP_gain", "mAP_gain_low", "mAP_gain_high")
    return {
        f"{name}.{slug(group.label)}": value
        for group in groups
        for name, value in group.metrics().items()
        if name in shown
    }


def show_groups(screen: Screen, groups: Sequence[SeedGroup]) -> None:
    """Print the rows side by side with their spread over the seeds, and below it the differences to the baseline."""
    runs = [run for group in groups for run in group.runs]
    shown = columns_of(runs)
    table = Table(header_style="bold", pad_edge=False)
    table.add_column("")
    for title in (*shown.values(), "images", "steps", "time/seed"):
        table.add_column(title, justify="right")
    for group in groups:
        label = group.label + (LEAK_MARK if any(run.test_images for run in group.runs) else "")
        cost = (f"{group.mean('images'):,.0f}", f"{group.mean('pretrain_steps'):,.0f}")
        quality = [_spread(group, name) for name in shown]
        table.add_row(escape(label), *quality, *cost, clock(group.mean("total_seconds")))
    screen.console.print(table)
    _show_gains(screen, groups)
    show_notes(screen, runs)


def _spread(group: SeedGroup, name: str) -> str:
    if not group.values(name):
        return ""
    std = group.std(name)
    return f"{100 * group.mean(name):.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def _show_gains(screen: Screen, groups: Sequence[SeedGroup]) -> None:
    """Print the differences in mAP to the baseline, and what the numbers mean."""
    seeds = [run.seed for run in groups[0].runs]
    if len(seeds) > 1:
        named = ", ".join(map(str, seeds))
        screen.say(f"mean ± standard deviation over {len(seeds)} seeds ({named}); proxies, if any, have one seed")
    compared = [(group.label, group.gain) for group in groups if group.gain is not None]
    if not compared:
        return
    table = Table(header_style="bold", pad_edge=False)
    for title in ("against " + escape(groups[0].against), "mAP points", "95 % interval", ""):
        table.add_column(title, justify="left" if title.startswith("against") or not title else "right")
    for label, gain in compared:
        interval = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        verdict = "more than chance" if gain.significant else "may be chance"
        table.add_row(escape(label), f"{100 * gain.difference:+.1f}", interval, verdict)
    screen.console.print(table)
    if len(seeds) > 1:
        screen.say(
            "the intervals count the spread of queries and of seeds, paired by both; with few seeds they are wide"
        )
    else:
        screen.say("the intervals count the spread of queries alone: one seed does not show the spread of training")
