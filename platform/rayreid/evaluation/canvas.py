"""What all figures share: the canvas on which they are drawn, colours, the dress of axes, and how they are written.

Figures use matplotlib's object interface (without pyplot, hence without global state or a display). Save one with
`figure.savefig(path)`.
"""

import io
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from rayreid.errors import UserError
from rayreid.files import write_atomically

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")


# colours that colour-blind people can distinguish
PALETTE = ("#2a5fa5", "#d9822b", "#3c8d5a", "#8a4f9e", "#b5433c", "#5f7a8a")
INK, FAINT, MAT = "#2b2f36", "#d9dce1", "#f1f2f4"
DPI = 150
TEXT, SMALL = 9, 7.5  # in points


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
