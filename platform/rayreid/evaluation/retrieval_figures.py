"""Figures of retrieval: CMC curves, ranked lists, and the table of models by targets."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rayreid.evaluation.canvas import FAINT, INK, PALETTE, SMALL, TEXT, canvas, dress
from rayreid.evaluation.image_sheets import Pictures

RIGHT, WRONG, QUERY = "#2e9e57", "#d23b3b", INK
CAPTION = 12  # number of letters above a picture of a ranked list
LINES = ("-", "--", ":")  # line styles of curves beyond the palette


def cmc_curve(reports: Mapping[str, np.ndarray], max_rank: int = 20) -> Figure:
    """Return a figure of the cumulative match characteristics of one or more models.

    Args:
        reports: Name → `RetrievalReport.cmc`, (ranks,) in [0, 1]. Rank-1 is written into the legend.
        max_rank: Last rank drawn.
    """
    figure = canvas(5, 3.6)
    axes = dress(figure.add_subplot(), grid="both")
    for i, (name, cmc) in enumerate(reports.items()):
        shown = np.asarray(cmc)[:max_rank]
        axes.plot(
            np.arange(1, len(shown) + 1),
            shown,
            color=PALETTE[i % len(PALETTE)],
            linestyle=LINES[i // len(PALETTE) % len(LINES)],
            linewidth=1.8,
            marker="o",
            markersize=3.5,
            label=f"{name}  ({100 * shown[0]:.1f} at rank 1)",
        )
    axes.set_xlabel("rank")
    axes.set_ylabel("queries with a true match")
    axes.set_xlim(0.5, max_rank + 0.5)
    axes.set_xticks([1, *range(5, max_rank + 1, 5)])
    axes.set_ylim(top=1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="lower right", frameon=False, fontsize=SMALL)
    return figure


def ranked_lists(
    queries: Sequence[np.ndarray],
    results: Sequence[Sequence[np.ndarray]],
    right: Sequence[Sequence[bool]] | None,
    names: Sequence[str] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> Figure:
    """Return a figure with one row per query: the query, then the best gallery images.

    Correct images are framed in green, wrong ones in red, if this is known.

    Args:
        queries: Images (H, W, 3) uint8; sizes may differ.
        results: For each query, its images in order of rank; rows may have different lengths.
        right: Whether each image shows the query's identity; None: not known.
        names: Captions of the queries, shortened if they are longer than the picture is wide.
        scores: Similarities, written below the images.
    """
    widest = max(len(row) for row in results)
    gap = 0.35  # share of a column, between query and results
    step = 1.5 + 0.14 * (scores is not None)  # inches from row to row
    figure = canvas(0.8 * (1 + gap + widest) + 0.2, step * len(queries) + 0.3, constrained=False)
    grid = figure.add_gridspec(
        len(queries),
        2 + widest,
        width_ratios=[1, gap, *[1] * widest],
        left=0.01,
        right=0.99,
        bottom=0.02 + 0.14 * (scores is not None) / (step * len(queries) + 0.3),
        top=1 - 0.3 / (step * len(queries) + 0.3),
        wspace=0.12,
        hspace=0.18 + 0.1 * (scores is not None),
    )
    pictures = Pictures(figure)
    texts = [] if scores is None else [told_apart(row) for row in scores]
    for i, query in enumerate(queries):
        caption = "query" if names is None else _shortened(names[i])
        pictures.add(grid[i, 0], query, QUERY, above=caption, gap=3)
        marks = [None] * len(results[i]) if right is None else right[i]
        for j, (image, hit) in enumerate(zip(results[i], marks, strict=True)):
            colour, mark = {None: (INK, ""), True: (RIGHT, " ✓"), False: (WRONG, " ✗")}[hit]
            score = "" if scores is None else texts[i][j]
            frame = None if hit is None else colour
            pictures.add(grid[i, j + 2], image, frame, f"{j + 1}{mark}", score, colour, gap=3)
    return figure


def told_apart(scores: Sequence[float]) -> list[str]:
    """Return scores as text, with as many digits as it takes to tell different ones apart; two to six."""
    different = len(set(scores))
    for digits in range(2, 7):
        texts = [f"{score:.{digits}f}" for score in scores]
        if len(set(texts)) == different:
            break
    return texts


def score_matrix(
    values: np.ndarray, notes: Sequence[Sequence[str]], models: Sequence[str], targets: Sequence[str], title: str
) -> Figure:
    """Return a table of models by targets as a figure, with the numbers written in; the best of each target is bold.

    Args:
        values: (models, targets) in [0, 1]; each target has its own scale, from its worst to its best value.
        notes: A smaller second line in each cell.
        models: Names of the rows.
        targets: Names of the columns.
        title: Name of the values.
    """
    across = max(1.1, 0.085 * max(map(len, targets)))
    longest = 0.085 * max(map(len, models))
    figure = canvas(longest + across * len(targets) + 0.3, 0.46 * len(models) + 0.75)
    axes = figure.add_subplot()
    low, high = values.min(axis=0), values.max(axis=0)
    spread = np.where(high > low, high - low, 1)
    axes.imshow(0.08 + 0.37 * (values - low) / spread, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_title(title, fontsize=TEXT, color=INK, loc="left", fontweight="bold")
    axes.set_xticks(range(len(targets)), targets, fontsize=SMALL, color=INK)
    axes.set_yticks(range(len(models)), models, fontsize=SMALL, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_color(FAINT)
    for row in range(len(models)):
        for column in range(len(targets)):
            best = values[row, column] == high[column] and len(models) > 1
            weight = "bold" if best else "normal"
            text = f"{100 * values[row, column]:.1f}"
            axes.text(column, row - 0.14, text, ha="center", va="center", color=INK, fontsize=TEXT, fontweight=weight)
            axes.text(column, row + 0.24, notes[row][column], ha="center", va="center", color=INK, fontsize=SMALL - 1)
    return figure


def _shortened(name: str) -> str:
    """Return the end of a caption that is too long for its picture, because file names differ at their end."""
    return name if len(name) <= CAPTION else "…" + name[1 - CAPTION :]
