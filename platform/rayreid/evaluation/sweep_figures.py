"""Figures of a sweep: a score over the fraction of the pool, and over the costs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from rayreid.evaluation.canvas import FAINT, INK, PALETTE, SMALL, TEXT, canvas, dress
from rayreid.evaluation.metrics import TITLES
from rayreid.evaluation.outcomes import Curve, Group, pareto
from rayreid.evaluation.published import CLAIMED, HALF_CLAIM

_MEASURES = ("mAP", "rank1")
MARKERS = "osD^vPX*"
LEAST_SPAN = 0.02
"""Smallest range of a score's axis."""


def fraction_curves(curves: Sequence[Curve], baseline: Mapping[str, Group]) -> Figure:
    """Return a figure of mAP and Rank-1 over the fraction of the pool, with a line per strategy.

    One standard deviation over seeds is shaded. The published claim about the fraction is marked: a bar at the
    fraction, and to the right of it the level of the whole pool, below which the curves should not lie.

    Args:
        curves: One or more curves.
        baseline: Name → group without pre-training, drawn as a level.
    """
    figure = canvas(9.2, 3.9)
    panels = figure.subplots(1, 2)
    for axes, measure in zip(panels, _MEASURES, strict=True):
        dress(axes, grid="both")
        _claim(axes, curves, measure)
        for i, curve in enumerate(curves):
            _line(axes, curve, measure, PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)])
        for i, (name, group) in enumerate(baseline.items()):
            dashes = (0, (1 + i, 2))
            axes.axhline(group.mean(measure), color=INK, linewidth=1.1, linestyle=dashes, label=name)
        axes.set_title(TITLES[measure], fontsize=TEXT, color=INK, loc="left", fontweight="bold", pad=14)
        axes.set_xlabel("fraction of the pool")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set_xlim(0, 1.03)
        _open(axes)
    _legend(figure, panels[0])
    return figure


def _line(axes: Axes, curve: Curve, measure: str, colour: str, marker: str) -> None:
    x = np.array(curve.fractions)
    mean = np.array([group.mean(measure) for group in curve.points])
    std = np.nan_to_num([group.std(measure) for group in curve.points])
    axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    axes.errorbar(
        x, mean, std, fmt=f"{marker}-", color=colour, ms=4, lw=1.7, elinewidth=0.9, capsize=2, label=curve.name
    )


def _claim(axes: Axes, curves: Sequence[Curve], measure: str) -> None:
    axes.axvline(CLAIMED, color=FAINT, linewidth=5, zorder=0)
    axes.annotate(
        HALF_CLAIM,
        (CLAIMED, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=SMALL,
        color=INK,
    )
    for level in {group.mean(measure) for curve in curves if (group := curve.at(1.0))}:
        axes.plot((CLAIMED, 1), (level, level), color=INK, linewidth=1, linestyle="--", zorder=1)


def cost_figure(groups: Sequence[Group], cost: str, measure: str = "mAP") -> Figure:
    """Return a figure of a score over training cost and over images, with the Pareto fronts.

    The settings on the front over cost are numbered by rising cost, in both panels. If all have the same number of
    images, the panel of images is left out.

    Args:
        groups: One or more groups.
        cost: `gpu_hours` or `hours`, the axis of the left panel; that of the right one is `images`.
        measure: The score.
    """
    axes_of = [cost, "images"] if len({group.mean("images") for group in groups}) > 1 else [cost]
    figure = canvas(4.6 * len(axes_of), 4.2)
    kind_of = _kinds(groups)
    kinds = list(dict.fromkeys(kind_of))
    labels = {"gpu_hours": "GPU-hours", "hours": "hours (no GPU was used)", "images": "images pre-trained on"}
    panels = figure.subplots(1, len(axes_of), sharey=True, squeeze=False)[0]
    y = [group.mean(measure) for group in groups]
    numbers = dict(enumerate(pareto([group.mean(cost) for group in groups], y), 1))
    for axes, axis in zip(panels, axes_of, strict=True):
        dress(axes, grid="both")
        x = [group.mean(axis) for group in groups]
        front = pareto(x, y)
        steps = [x[i] for i in front], [y[i] for i in front]
        axes.step(*steps, where="post", color=INK, linewidth=1, label="Pareto front")
        for i, kind in enumerate(kinds):
            chosen = [j for j, other in enumerate(kind_of) if other == kind]
            axes.errorbar(
                [x[j] for j in chosen],
                [y[j] for j in chosen],
                np.nan_to_num([groups[j].std(measure) for j in chosen]),
                color=PALETTE[i % len(PALETTE)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=5,
                linestyle="none",
                elinewidth=0.9,
                capsize=2,
                label=kind,
            )
        for number, i in numbers.items():
            above = (x[i], y[i] + np.nan_to_num(groups[i].std(measure)))
            place = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "va": "bottom"}
            axes.annotate(str(number), above, fontsize=SMALL, color=INK, fontweight="bold", **place)
        axes.set_xlabel(labels[axis])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=axis == "images"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        if axis == "images":
            axes.xaxis.set_major_formatter(FuncFormatter(lambda count, place: f"{count:,.0f}"))
        axes.margins(x=0.12, y=0.14)
    _open(panels[0])
    panels[0].set_ylabel(TITLES[measure])
    _legend(figure, panels[0])
    return figure


def _open(axes: Axes) -> None:
    """Show a range of at least two points, so that a tenth of a point does not look like a difference."""
    low, high = axes.get_ylim()
    short = (LEAST_SPAN - (high - low)) / 2
    if short > 0:
        axes.set_ylim(low - short, high + short)


def _legend(figure: Figure, axes: Axes) -> None:
    """Add one legend for all panels, below them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=SMALL)


def _kinds(groups: Sequence[Group]) -> list[str]:
    """Return each group's kind, which sets its colour: the strategy, and the stem unless all have the plain one."""
    firsts = [group.first for group in groups]
    plain = {one.stem for one in firsts} == {"patchify"}
    parts = [one.strategy if one.strategy != "none" else one.part for one in firsts]
    return [part if plain else f"{part}, {one.stem}" for part, one in zip(parts, firsts, strict=True)]
