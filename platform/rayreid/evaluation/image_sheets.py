"""Pictures on a figure, and contact sheets of them."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from rayreid.evaluation.canvas import INK, MAT, SMALL, canvas


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
