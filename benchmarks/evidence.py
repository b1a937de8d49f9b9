"""Tables and the figure of docs/results.md, from the ledger that `rayreid ledger` keeps.

    python benchmarks/evidence.py docs/results/ledger.csv > tables.md
    python benchmarks/evidence.py docs/results/ledger.csv --experiment evidence-real --against "random half"
    python benchmarks/evidence.py docs/results/ledger.csv --figure docs/results/gain.svg

One table per experiment, one line per row: mean ± standard deviation (n − 1) over the seeds, and the difference in mAP
to a baseline row. Differences are taken seed by seed, and their 95 % interval is Student's t over the seeds: it counts
the spread of training (and of what each seed draws), not that of the queries, which `rayreid run` adds by its
bootstrap. A line of the same experiment, row and seed that comes later in the ledger replaces the earlier one; the
table says so.

The figure shows the gain over random selection against the share of relevant images in the pool. It takes experiments
that are named `evidence-drawn-POOL-SHARE`, with POOL the images of the pool and SHARE the relevant ones in per cent
(`evidence-drawn-1600-15`), and their rows `random` (the baseline), `cfs` and `oracle`.
"""

import argparse
import csv
import fnmatch
import math
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.stats import t as student

from rayreid.evaluation.canvas import INK, PALETTE, SMALL, canvas, dress

CONFIDENCE = 0.95
NEEDED = (
    "experiment",
    "row",
    "seed",
    "config",
    "commit",
    "machine",
    "images",
    "budget",
    "steps",
    "probe_start",
    "probe_end",
    "mAP",
    "rank1",
    "mINP",
    "test_images",
    "warnings",
)
DRAWN = re.compile(r"evidence-drawn-(\d+)-(\d+)")
BASELINE, SHOWN = "random", ("oracle", "cfs")

Line = dict[str, str]
Runs = dict[str, Line]
"""The lines of one row by seed."""


@dataclass(frozen=True)
class Gain:
    """A difference over seeds; `half` is half of the interval's width, None for a single seed."""

    mean: float
    half: float | None
    seeds: int


class EvidenceError(Exception):
    """What the ledger lacks, in one line."""


def read_ledger(path: Path) -> list[Line]:
    """Return the ledger's lines, checked for the columns that are used here."""
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
        if missing:
            raise EvidenceError(f"{path}: no column {missing[0]!r}; is it a ledger of `rayreid ledger`?")
        return list(reader)


def by_experiment(lines: Iterable[Line]) -> dict[str, dict[str, Runs]]:
    """Return the lines by experiment, row and seed, in the ledger's order; a later line replaces an earlier one."""
    found: dict[str, dict[str, Runs]] = {}
    for line in lines:
        found.setdefault(line["experiment"], {}).setdefault(line["row"], {})[line["seed"]] = line
    return found


def paired_gain(baseline: Runs, compared: Runs, metric: str = "mAP") -> Gain | None:
    """Return the mean difference over the seeds that both have, with the t-interval; None if they share no seed."""
    both = [seed for seed in compared if seed in baseline]
    if not both:
        return None
    differences = [float(compared[seed][metric]) - float(baseline[seed][metric]) for seed in both]
    n = len(both)
    half = None
    if n > 1:
        half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Gain(statistics.fmean(differences), half, n)


def table_of(name: str, rows: dict[str, Runs], against: str | None, lines: Sequence[Line]) -> str:
    """Return one experiment's table in Markdown, with a line below it that says what it was made from.

    Args:
        name: The experiment.
        rows: Its rows by label and seed.
        against: Label of the baseline row; None: the first.
        lines: All of the experiment's lines in the ledger.
    """
    against = next(iter(rows)) if against is None else against
    if against not in rows:
        raise EvidenceError(f"{name}: no row {against!r} to compare with; there are: {', '.join(rows)}")
    head = [
        "",
        "seeds",
        "mAP %",
        "Rank-1 %",
        "mINP %",
        f"mAP against {against}",
        "images",
        "budget",
        "steps",
        "probe mAP %",
    ]
    shown = [_cells(label, runs, rows[against] if label != against else None) for label, runs in rows.items()]
    text = [f"### {name}", "", _row(head), _row(["---"] * len(head)), *map(_row, shown), "", _made_from(rows, lines)]
    return "\n".join(text)


def _cells(label: str, runs: Runs, baseline: Runs | None) -> list[str]:
    gain = None if baseline is None else paired_gain(baseline, runs)
    mark = " †" if any(int(line["test_images"]) for line in runs.values()) else ""
    scores = [spread([float(line[metric]) for line in runs.values()]) for metric in ("mAP", "rank1", "mINP")]
    probes = [_mean(runs, name) for name in ("probe_start", "probe_end")]
    probe = "" if None in probes else " → ".join(f"{100 * value:.1f}" for value in probes if value is not None)
    cost = [_range(runs, "images"), ", ".join(dict.fromkeys(line["budget"] for line in runs.values()))]
    return [f"{label}{mark}", str(len(runs)), *scores, difference(gain), *cost, _range(runs, "steps"), probe]


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation in per cent; the mean alone of a single value."""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def difference(gain: Gain | None) -> str:
    """Return a difference in points with its interval; a single seed has none."""
    if gain is None:
        return "–"
    mean = f"{100 * gain.mean:+.1f}"
    return (
        mean
        if gain.half is None
        else f"{mean} ({100 * (gain.mean - gain.half):+.1f} to {100 * (gain.mean + gain.half):+.1f})"
    )


def _mean(runs: Runs, column: str) -> float | None:
    values = [float(line[column]) for line in runs.values() if line[column]]
    return statistics.fmean(values) if values else None


def _range(runs: Runs, column: str) -> str:
    values = [int(line[column]) for line in runs.values()]
    return f"{values[0]:,}" if len(set(values)) == 1 else f"{min(values):,} to {max(values):,}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _made_from(rows: dict[str, Runs], lines: Sequence[Line]) -> str:
    """Say how many trainings and settings stand behind a table, and which of its rows have warnings or test images."""
    used = [line for runs in rows.values() for line in runs.values()]
    older = len(lines) - len(used)
    settings = len({line["config"] for line in lines})
    commits = ", ".join(dict.fromkeys(line["commit"][:10] for line in used if line["commit"])) or "not recorded"
    machines = "; ".join(dict.fromkeys(line["machine"] for line in used if line["machine"])) or "not recorded"
    said = [
        f"{len(lines)} lines of the ledger, {settings} configurations (row × seed); "
        f"commit {commits}; machine {machines}."
    ]
    if older:
        said.append(f"{older} older lines of the same row and seed are left out.")
    warned = [f"{line['row']} (seed {line['seed']})" for line in used if line["warnings"]]
    if warned:
        said.append(f"Warnings: {', '.join(warned)}.")
    if any(int(line["test_images"]) for line in used):
        said.append("† The pool holds test images of the target.")
    return " ".join(said)


def gain_figure(experiments: dict[str, dict[str, Runs]]) -> Figure:
    """Return the gain over random selection against the share of relevant images, one line per row and size of pool."""
    points: dict[tuple[str, int], list[tuple[float, Gain]]] = {}
    for name, rows in experiments.items():
        match = DRAWN.fullmatch(name)
        for label in SHOWN if match and BASELINE in rows else ():
            gain = paired_gain(rows[BASELINE], rows.get(label, {}))
            if match and gain is not None:
                points.setdefault((label, int(match[1])), []).append((int(match[2]) / 100, gain))
    if not points:
        raise EvidenceError("no experiment evidence-drawn-POOL-SHARE with the rows random and cfs or oracle")
    figure = canvas(5.4, 3.6)
    axes = dress(figure.add_subplot(), grid="both")
    axes.axhline(0, color=INK, linewidth=1, linestyle="--", label=BASELINE)
    pools = sorted({pool for _, pool in points})
    ordered = sorted(points.items(), key=lambda item: (SHOWN.index(item[0][0]), item[0][1]))
    for number, ((label, pool), found) in enumerate(ordered):
        found.sort(key=lambda point: point[0])
        aside = 0.005 * (number - (len(ordered) - 1) / 2)  # bars at one share must not hide one another
        axes.errorbar(
            [share + aside for share, _ in found],
            [100 * gain.mean for _, gain in found],
            [100 * (math.nan if gain.half is None else gain.half) for _, gain in found],
            fmt=f"{'osD^'[pools.index(pool) % 4]}-",
            color=PALETTE[SHOWN.index(label)],
            alpha=1 if pool == pools[-1] else 0.6,
            capsize=3,
            markersize=5,
            linewidth=1.6,
            label=f"{label}, pool of {pool:,}",
        )
    axes.set_xlabel("share of relevant images in the pool")
    axes.set_ylabel("mAP over random selection, points")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    title = "bars: 95 % t-interval over seeds"
    axes.legend(frameon=False, fontsize=SMALL, title=title, title_fontsize=SMALL, alignment="left")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure; an SVG of the same numbers has the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "rayreid"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and draw the figure if one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledger", type=Path)
    parser.add_argument(
        "--experiment", action="append", metavar="NAME", help="experiments to show, * allowed; default: all"
    )
    parser.add_argument("--against", metavar="ROW", help="baseline row; default: the first row of each experiment")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the gain over random as .svg or .png")
    asked = parser.parse_args(arguments)
    try:
        lines = read_ledger(asked.ledger)
        wanted = asked.experiment or ["*"]
        lines = [line for line in lines if any(fnmatch.fnmatchcase(line["experiment"], name) for name in wanted)]
        if not lines:
            raise EvidenceError(f"{asked.ledger}: no line of {', '.join(wanted)}")
        experiments = by_experiment(lines)
        for name, rows in experiments.items():
            print(
                table_of(name, rows, asked.against, [line for line in lines if line["experiment"] == name]), end="\n\n"
            )
        if asked.figure:
            save(gain_figure(experiments), asked.figure)
    except (EvidenceError, OSError) as error:
        sys.exit(f"evidence: {error}")


if __name__ == "__main__":
    main()
