"""Figures of a run: training curves, score histograms and contact sheets.

All use matplotlib's object interface (without pyplot, hence without global state or a display) and share the style at
the top of this module. Save a figure with `figure.savefig(path)`.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from rayreid.errors import UserError
from rayreid.files import write_atomically

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")


# colours that colour-blind people can distinguish
PALETTE = ("#2a5fa5", "#d9822b", "#3c8d5a", "#8a4f9e", "#b5433c", "#5f7a8a")
INK, FAINT, MAT = "#2b2f36", "#d9dce1", "#f1f2f4"
DPI = 150
TEXT, SMALL = 9, 7.5  # in points
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


def image_sheet(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    columns: int = 8,
    frames: Sequence[str | None] | None = None,
) -> Figure:
    """Return a contact sheet of images of various sizes, each fitted whole into a cell twice as high as wide.

    Args:
        images: (H, W, 3) uint8 each.
        titles: Titles above the images.
        columns: Number of images in a row.
        frames: Colour of each image's frame; None for no frame.
    """
    columns = min(columns, len(images))
    lines = math.ceil(len(images) / columns)
    caption = 0.2 if titles is not None else 0.0
    width, height = 0.95 * columns, (1.8 + caption) * lines
    figure = canvas(width, height, constrained=False)
    grid = figure.add_gridspec(
        lines,
        columns,
        left=0.06 / width,
        right=1 - 0.06 / width,
        bottom=0.06 / height,
        top=1 - (0.06 + caption) / height,
        wspace=0.08,
        hspace=(0.08 + caption) / 1.7,
    )
    pictures = Pictures(figure)
    for i, image in enumerate(images):
        place = grid[i // columns, i % columns]
        pictures.add(place, image, frames[i] if frames else None, above=titles[i] if titles is not None else "")
    return figure


def group_colours(count: int) -> list[str]:
    """Return the colours of groups of images, the same in every figure; the colour of the whole is `PALETTE[0]`."""
    return [PALETTE[1 + i % (len(PALETTE) - 1)] for i in range(count)]


class PlainFigure(Figure):
    """A figure whose texts are labels and keys of the user's, not formulas: a `$` in one is a dollar sign.

    As a PNG it is drawn once, and has no alpha channel. Matplotlib draws it twice and compresses the channel, too.
    """

    def savefig(self, fname: Any, **options: Any) -> None:
        """Write the figure to a file or stream; see `matplotlib.figure.Figure.savefig`."""
        options = {name: value for name, value in options.items() if value is not None}
        kind = options.get("format") or (Path(fname).suffix[1:] if isinstance(fname, str | os.PathLike) else "png")
        if kind != "png" or set(options) - {"format"}:
            super().savefig(fname, **options)
            return
        drawn = FigureCanvasAgg(self)
        drawn.draw()
        pixels = np.asarray(drawn.buffer_rgba())[..., :3]
        Image.fromarray(pixels).save(fname, format="png", dpi=(self.dpi, self.dpi))

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure."""
        for text in self.findobj(Text):
            text.set_parse_math(False)
        super().draw(renderer)


def canvas(width: float, height: float, constrained: bool = True) -> Figure:
    """Return an empty white figure; the size is in inches."""
    figure = PlainFigure(figsize=(width, height), dpi=DPI, layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, grid: Literal["x", "y", "both"]) -> Axes:
    """Apply the house style of axes with numbers: two spines, and a pale grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=SMALL)
    axes.xaxis.label.set(color=INK, fontsize=TEXT)
    axes.yaxis.label.set(color=INK, fontsize=TEXT)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    return axes


class Pictures:
    """Pictures in the cells of a figure, on one pair of axes, in inches.

    A pair of axes for each picture would take ten milliseconds: seconds for the lists of an evaluation.
    """

    def __init__(self, figure: Figure):
        self._figure = figure
        self._axes = figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._axes.set(xlim=(0, figure.get_figwidth()), ylim=(0, figure.get_figheight()), autoscale_on=False)

    def add(
        self,
        place: SubplotSpec,
        image: np.ndarray,
        frame: str | None = None,
        above: str = "",
        below: str = "",
        colour: str = INK,
        gap: float = 2.5,
    ) -> None:
        """Draw an image, whole and undistorted, centred in a field of the cell that is twice as high as wide.

        Args:
            place: The cell.
            image: (H, W, 3) uint8.
            frame: The colour of a frame around the field; None: it has none.
            above: The caption.
            below: A second caption.
            colour: The colour of the caption above.
            gap: Points between the cell and the caption above.
        """
        inches = self._figure.get_size_inches()
        (x0, y0), (x1, y1) = place.get_position(self._figure).get_points() * inches
        x, y, width = (x0 + x1) / 2, (y0 + y1) / 2, min(x1 - x0, (y1 - y0) / 2)
        height = 2 * width
        left, bottom = x - width / 2, y - height / 2
        scale = min(width / image.shape[1], height / image.shape[0])
        half_width, half_height = scale * image.shape[1] / 2, scale * image.shape[0] / 2
        self._axes.add_patch(Rectangle((left, bottom), width, height, facecolor=MAT, zorder=-1))
        self._axes.add_image(self._image(image, (x - half_width, x + half_width, y - half_height, y + half_height)))
        edge = Rectangle((left, bottom), width, height, fill=False, edgecolor=frame, linewidth=2.4, zorder=2.5)
        edge.set_visible(frame is not None)
        self._axes.add_patch(edge)
        self._axes.text(x, bottom + height + gap / 72, above, ha="center", va="baseline", fontsize=SMALL, color=colour)
        self._axes.text(x, bottom - 2 / 72, below, ha="center", va="top", fontsize=SMALL, color=INK)

    def _image(self, image: np.ndarray, extent: tuple[float, float, float, float]) -> AxesImage:
        drawn = AxesImage(self._axes, extent=extent, origin="upper")
        drawn.set_data(image)
        return drawn


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


def save_picture(figure: Figure, path: Path, option: str) -> None:
    """Write a figure whole or not at all, in the format that the file's suffix names; PNG where there is none.

    Args:
        figure: The figure to write.
        path: The file to write.
        option: The option of the command line that names the file.

    Raises:
        UserError: There is no such format, or the file cannot be written.
    """
    sink = io.BytesIO()
    try:
        figure.savefig(sink, format=path.suffix[1:].lower() or "png")
        write_atomically(path, sink.getvalue())
    except ValueError as error:
        raise UserError(f"{option} {path}: {error}; name it e.g. {path.stem}.png") from error
    except OSError as error:
        raise UserError(f"{option} {path}: it cannot be written ({error.strerror}); choose another place") from error
