"""Figure of a ViT's attention: that of the class token in the last block, drawn over the image."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from rayreid.evaluation.canvas import canvas
from rayreid.evaluation.image_sheets import Pictures

_GLOW = LinearSegmentedColormap.from_list("glow", ["#101a2b", "#2a5fa5", "#d9822b", "#fff4d6"])
_IMAGE_SHARE = 0.45  # share of the image in a pixel: enough to recognise the person, little enough to read the map


def attention_sheet(
    images: Sequence[np.ndarray], maps: np.ndarray, grid: tuple[int, int], names: Sequence[str] | None = None
) -> Figure:
    """Return a figure with one row per image: the image, the mean over the heads, then every head.

    Each map is scaled by its own maximum. It shows where a head looks, not how much of its attention goes to the class
    token itself.

    Args:
        images: (H, W, 3) uint8; sizes may differ. They are shown in the aspect of the grid, as the network saw them.
        maps: (B, heads, N) from `ViT.attention_maps`, N = rows · columns of the grid.
        grid: (rows, columns) of patches.
        names: Captions of the rows' first images.

    Raises:
        ValueError: The maps do not fit the grid, or there is not one per image.
    """
    maps = np.asarray(maps, np.float32)
    if maps.ndim != 3 or len(maps) != len(images) or maps.shape[2] != grid[0] * grid[1]:
        raise ValueError(f"maps {maps.shape} for {len(images)} images and a grid of {grid}")
    heads = maps.shape[1]
    columns = 2 + heads
    width, height = 0.95 * columns, 1.8 * len(images) + 0.25
    figure = canvas(width, height, constrained=False)
    cells = figure.add_gridspec(
        len(images),
        columns,
        left=0.06 / width,
        right=1 - 0.06 / width,
        bottom=0.06 / height,
        top=1 - 0.3 / height,
        wspace=0.08,
        hspace=0.14,
    )
    titles = ["image", "mean", *(f"head {h + 1}" for h in range(heads))]
    pictures = Pictures(figure)
    for i, image in enumerate(images):
        layers = np.concatenate([maps[i].mean(axis=0, keepdims=True), maps[i]]).reshape(1 + heads, *grid)
        cell = _as_seen(image, grid)
        for j, shown in enumerate([cell, *(_glow(cell, layer) for layer in layers)]):
            caption = names[i] if names is not None and j == 0 else titles[j] if i == 0 else ""
            pictures.add(cells[i, j], shown, above=caption)
    return figure


def _as_seen(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the image at 16 pixels a patch."""
    return np.asarray(Image.fromarray(image).resize((16 * grid[1], 16 * grid[0]), Image.Resampling.BICUBIC))


def _glow(image: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Return the image in grey, overlaid with the map (rows, columns) of one head: (H, W, 3) uint8."""
    top = float(layer.max())
    scaled = Image.fromarray(layer / top if top > 0 else layer).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
    colours = _GLOW(np.asarray(scaled))[..., :3]
    grey = image.mean(axis=2, keepdims=True) / 255
    return (255 * (_IMAGE_SHARE * grey + (1 - _IMAGE_SHARE) * colours)).astype(np.uint8)
