"""Figures that compare several selection strategies: their agreement, and the images that each keeps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rayreid.evaluation.canvas import FAINT, INK, PALETTE, SMALL, TEXT, canvas, dress, group_colours


def agreement_matrices(matrices: Mapping[str, np.ndarray], labels: Sequence[str]) -> Figure:
    """Return a figure of square matrices side by side, with the numbers written in.

    Args:
        matrices: Title → (n, n) in [−1, 1]; NaN: undefined.
        labels: Labels of rows and columns, n of them.
    """
    count = len(labels)
    side = max(1.6, 0.5 * count)
    longest = 0.085 * max(map(len, labels))
    figure = canvas(longest + (side + 0.25) * len(matrices) + 0.2, longest + side + 0.5)
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for panel, (axes, (title, values)) in enumerate(zip(panels, matrices.items(), strict=True)):
        axes.imshow(values, cmap="RdBu", vmin=-1.25, vmax=1.25)  # beyond ±1, so that the numbers are legible
        axes.set_title(title, fontsize=TEXT, color=INK, loc="left", fontweight="bold")
        axes.set_xticks(range(count), labels, rotation=90, fontsize=SMALL, color=INK)
        axes.set_yticks(range(count), labels if panel == 0 else [""] * count, fontsize=SMALL, color=INK)
        axes.tick_params(length=0)
        axes.spines[:].set_color(FAINT)
        for row in range(count):
            for column in range(count):
                value = values[row, column]
                text = "–" if np.isnan(value) else f"{value:.2f}"
                axes.text(
                    column,
                    row,
                    text,
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color=INK if not abs(value) > 0.75 else "white",
                )
    return figure


def keep_rates(fractions: Sequence[float], rates: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Return a figure with a panel per strategy: each origin's share of images kept, over the fraction of the pool.

    Args:
        fractions: Fractions of the pool, ascending.
        rates: Strategy → origin → share at each fraction.
    """
    figure = canvas(2.6 * len(rates) + 0.6, 2.9)
    panels = figure.subplots(1, len(rates), squeeze=False, sharey=True)[0]
    origins = list(dict.fromkeys(origin for one in rates.values() for origin in one))
    for axes, (title, one) in zip(panels, rates.items(), strict=True):
        dress(axes, grid="both")
        axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1.2)
        for colour, origin in zip(group_colours(len(origins)), origins, strict=True):
            shares = (0.0, *one[origin], 1.0)
            axes.plot(
                (0.0, *fractions, 1.0), shares, color=colour, linewidth=1.6, marker="o", markersize=3, label=origin
            )
        axes.set_title(title, fontsize=TEXT, color=INK, loc="left", fontweight="bold")
        axes.set_xlabel("of the pool")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_ylabel("of the origin's images kept")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].legend(loc="best", frameon=False, fontsize=SMALL)
    return figure


def measure_histograms(measures: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> Figure:
    """Return a figure with a histogram per measure: the pool filled, and the images of each selection as an outline.

    The horizontal axis spans the middle 99 % of the pool; what lies beyond is counted in the outermost bars.

    Args:
        measures: Title → values of all images of the pool (N,), two different ones at least; NaN: not known.
        kept: Selection → rows of its images.
    """
    columns = min(3, len(measures))
    lines = -(-len(measures) // columns)
    figure = canvas(3.6 * columns, 2.6 * lines + 0.5)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (title, values) in zip(panels, measures.items(), strict=False):
        dress(axes, grid="y")
        known = values[np.isfinite(values)]
        low, high = np.percentile(known, (0.5, 99.5))
        if high <= low:  # all but a few are equal
            low, high = known.min(), known.max()
        edges = np.linspace(low, high, 31)
        axes.stairs(_shares(known, edges), edges, fill=True, color=PALETTE[0], alpha=0.25, label="whole pool")
        for colour, (label, rows) in zip(group_colours(len(kept)), kept.items(), strict=True):
            theirs = values[rows]
            axes.stairs(_shares(theirs[np.isfinite(theirs)], edges), edges, color=colour, linewidth=1.4, label=label)
        axes.set_title(title, fontsize=TEXT, color=INK, loc="left", fontweight="bold")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.margins(x=0.01)
    for axes in panels:
        axes.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=SMALL)
    return figure


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the share of values in each bin; those beyond the edges count in the outermost bins."""
    return np.histogram(values.clip(edges[0], edges[-1]), edges)[0] / max(1, len(values))
