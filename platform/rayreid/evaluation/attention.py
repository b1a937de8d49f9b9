"""Figure of where a ViT looks: the class token's attention in the last block, over the image."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from rayreid.evaluation.figures import Pictures, canvas

_GLOW = LinearSegmentedColormap.from_list("glow", ["#101a2b", "#2a5fa5", "#d9822b", "#fff4d6"])
_IMAGE_SHARE = 0.45  # of a pixel: enough to tell the person, little enough for the map to be read


def attention_sheet(
    images: Sequence[np.ndarray], maps: np.ndarray, grid: tuple[int, int], names: Sequence[str] | None = None
) -> Figure:
    """One row per image: the image, the mean over the heads, then every head.

    Each map is scaled by its own maximum: what shows is where a head looks, not how much of its attention is left
    to the class token itself.

    Args:
        images: (H, W, 3) uint8, sizes may differ; shown in the shape that the network saw, which is the grid's.
        maps: (B, heads, N) as `ViT.attention_maps` gives them, N = rows · columns of the grid.
        grid: (rows, columns) of patches.
        names: captions of the rows' first images.

    Raises:
        ValueError: maps that are not of that grid or not one per image.
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
    """The image at 16 pixels a patch."""
    return np.asarray(Image.fromarray(image).resize((16 * grid[1], 16 * grid[0]), Image.Resampling.BICUBIC))


def _glow(image: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """The image, grey, under a map (rows, columns) of one head: (H, W, 3) uint8."""
    top = float(layer.max())
    scaled = Image.fromarray(layer / top if top > 0 else layer).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
    colours = _GLOW(np.asarray(scaled))[..., :3]
    grey = image.mean(axis=2, keepdims=True) / 255
    return (255 * (_IMAGE_SHARE * grey + (1 - _IMAGE_SHARE) * colours)).astype(np.uint8)
