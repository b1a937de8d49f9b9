"""Histograms of the scores of a pool."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rayreid.evaluation.canvas import INK, PALETTE, SMALL, canvas, dress, group_colours


def score_histogram(
    scores: np.ndarray,
    cut: float | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    label: str = "score",
) -> Figure:
    """Return a histogram of scores in which the part above the cut is filled.

    Args:
        scores: (N,), scores of all images.
        cut: Lowest score that is kept; drawn as a line, with the share of images kept.
        groups: Name → mask (N,) bool or row numbers. Each group is drawn as a separate outline. The whole and every
            group are scaled to their own sizes.
        label: Label of the horizontal axis.
    """
    scores = np.asarray(scores, np.float64)
    figure = canvas(5, 3.2)
    axes = dress(figure.add_subplot(), grid="y")
    edges = np.histogram_bin_edges(scores, bins=int(np.clip(2 * len(scores) ** (1 / 3), 12, 80)))
    if cut is not None:  # moved, so that no bar lies on both sides of the cut
        width = edges[1] - edges[0]
        edges = np.append(edges[0] - width, edges) + (cut - edges[0]) % width
    share = np.histogram(scores, edges)[0] / len(scores)
    centres = (edges[:-1] + edges[1:]) / 2
    kept = centres >= (-np.inf if cut is None else cut)
    for chosen, alpha in ((kept, 0.75), (~kept, 0.25)):
        axes.bar(centres[chosen], share[chosen], edges[1] - edges[0], color=PALETTE[0], alpha=alpha, linewidth=0)
    groups = groups or {}
    for colour, (name, members) in zip(group_colours(len(groups)), groups.items(), strict=True):
        part = scores[np.asarray(members)]
        height = np.histogram(part, edges)[0] / max(1, len(part))
        axes.stairs(height, edges, color=colour, linewidth=1.6, label=f"{name} ({len(part):,})")
    if cut is not None:
        axes.axvline(cut, color=INK, linewidth=1.2, linestyle="--")
        axes.annotate(
            f" {100 * (scores >= cut).mean():.0f} % kept  (≥ {cut:.3f})",
            (cut, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=SMALL,
            color=INK,
            ha="center",
            va="bottom",
        )
    if groups:
        axes.legend(loc="best", frameon=False, fontsize=SMALL)
    axes.set_xlabel(label)
    axes.set_ylabel("share of images")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(x=0.01)
    return figure
