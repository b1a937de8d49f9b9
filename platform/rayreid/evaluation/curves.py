"""Curves of a run over its steps or epochs."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayreid.evaluation.canvas import INK, PALETTE, TEXT, canvas, dress

SMOOTH_FROM = 120  # number of points from which a curve is also drawn smoothed


def loss_curves(
    history: Sequence[Mapping[str, float]] | Mapping[str, Sequence[float]],
    keys: Sequence[str],
    x: str = "step",
) -> Figure:
    """Return a figure with one panel per key over the steps of a run.

    Long curves are drawn pale, with their centred moving average on top.

    Args:
        history: Rows ({"step": 10, "loss": 3.2}, …) or columns ({"step": […], "loss": […]}); rows without a key are
            left out of that key's panel.
        keys: Keys to draw.
        x: Key of the horizontal axis; if it is missing, the row number is used.
    """
    columns = 2 if len(keys) == 4 else min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    width, height = 3.3 * columns, 2.5 * lines
    # All panels have the same margins, in inches. A layout that is found by trying takes as long as the drawing.
    left, right, bottom, top = 0.7, 0.26, 0.5, 0.32
    figure = canvas(width, height, constrained=False)
    grid = figure.add_gridspec(
        lines,
        columns,
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=(left + right) / (3.3 - left - right),
        hspace=(bottom + top) / (2.5 - bottom - top),
    )
    for i, key in enumerate(keys):
        axes = dress(figure.add_subplot(grid[i // columns, i % columns]), grid="both")
        steps, values = _column(history, key, x)
        long = len(values) >= SMOOTH_FROM
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(steps, values, color=colour, alpha=0.25 if long else 1, linewidth=0.8 if long else 1.6, label=key)
        if long:
            axes.plot(steps, _smoothed(values), color=colour, linewidth=1.6, label=f"{key}, smoothed")
        axes.set_title(key, fontsize=TEXT, color=INK, loc="left", fontweight="bold")
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(partial(_number, axis))
        axes.margins(x=0.01)
        if np.ptp(values) <= 1e-9 * np.abs(values).max(initial=0):  # a constant curve, not its rounding errors
            half = 0.1 * abs(float(values[0])) or 1.0
            axes.set_ylim(values[0] - half, values[0] + half)
    return figure


def _number(axis: Axis, value: float, position: float) -> str:
    """Return a tick's label, a number complete in itself: a common factor would need a line above the axes."""
    low, high = axis.get_view_interval()
    digits = 3 + math.ceil(math.log10(max(abs(low), abs(high)) / (high - low))) if high > low else 7
    return f"{value:.{max(7, digits)}g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")


def _column(
    history: Sequence[Mapping[str, float]] | Mapping[str, Sequence[float]], key: str, x: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values) of one key from rows or columns."""
    if isinstance(history, Mapping):
        values = np.asarray(history[key], np.float64)
        return np.asarray(history.get(x, np.arange(len(values))), np.float64), values
    pairs = [(row.get(x, i), row[key]) for i, row in enumerate(history) if key in row]
    both = np.array(pairs, np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Return the centred mean over 1/40 of the curve.

    Near the ends the window shrinks on both sides, so nothing is shifted.
    """
    i = np.arange(len(values))
    half = np.minimum(np.minimum(i, i[::-1]), max(1, len(values) // 80))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[i + half + 1] - sums[i - half]) / (2 * half + 1)
