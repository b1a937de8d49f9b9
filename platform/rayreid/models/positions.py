"""Position embeddings of files: the grid of patches that they stand for, and their resampling to another grid."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rayreid.errors import UserError

Grid = tuple[int, int]
"""Rows and columns of patches, (h, w)."""

RATIOS = ((1, 1), (4, 3), (2, 1), (3, 1))
"""Height to width of published models' images: ImageNet, 256x192, 256x128, 384x128."""


def possible_grids(positions: int) -> list[Grid]:
    """Return the grids (h, w) in a ratio of `RATIOS` that have this number of positions, tallest first.

    192 positions are 24x8 (384x128 pixels) as well as 16x12 (256x192 pixels).
    """
    found: list[Grid] = []
    if positions <= 0:
        return found
    for high, wide in RATIOS:
        step = math.isqrt(positions // (high * wide))
        if high * wide * step * step == positions:
            found.append((high * step, wide * step))
    return sorted(found, reverse=True)


def class_rows(state: Mapping[str, Tensor]) -> int:
    """Return how many rows of `pos_embed` belong to tokens before the patches.

    It is 1, the class token's, or 0 in a ViT with register or part tokens, which get no position (timm:
    `no_embed_class`).
    """
    return 0 if "reg_token" in state else 1


def patch_of(spec: Mapping[str, Any]) -> tuple[int, int]:
    """Return the pixels (h, w) per token of a ViT's spec."""
    patch = spec.get("patch_size", 16)
    return (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))


def ambiguity(positions: int, patch: tuple[int, int]) -> str:
    """Return why the grid of a number of positions is not known, and the image sizes in pixels to choose from."""
    grids = possible_grids(positions)
    if not grids:
        return f"{positions} positions are no square, 4:3, 2:1 or 3:1 grid"
    shapes = " or ".join(f"{h}x{w}" for h, w in grids)
    sizes = " or ".join(f"{h * patch[0]}x{w * patch[1]}" for h, w in grids)
    return f"{positions} positions are {shapes} patches (images of {sizes})"


def is_assumed(positions: int, own: Grid | None, wanted: Grid) -> bool:
    """Return whether a table is taken to be of the backbone's grid, because nothing else decides.

    That is so if the file does not state its grid, the backbone has as many positions, and either the backbone's grid
    is one of several usual ones of that number, or no usual grid has it.
    """
    if (own is not None and own[0] * own[1] == positions) or positions != wanted[0] * wanted[1]:
        return False
    grids = possible_grids(positions)
    return not grids or (len(grids) > 1 and wanted in grids)


def fit_positions(
    table: Tensor, rows: int, own: Grid | None, wanted: Grid, patch: tuple[int, int], source: str, strict: bool
) -> tuple[Tensor, Grid] | None:
    """Return a position embedding resampled to the backbone's grid, and the file's grid; None if it stays as it is.

    Args:
        table: (1, rows + H·W, D).
        rows: Rows before the patches' (`class_rows`).
        own: The grid that the file states; it is believed if the number of positions agrees.
        wanted: The backbone's grid.
        patch: The backbone's pixels (h, w) per token.
        source: The file, for messages.
        strict: Whether a grid that cannot be told is an error; else the table stays, and its shape does not fit.

    Raises:
        UserError: The grid cannot be told: the file does not state it, several grids have this number, or none, and
            the backbone's is not among them.
    """
    positions = table.shape[1] - rows
    if own is not None and own[0] * own[1] == positions:
        grid = own
    elif is_assumed(positions, own, wanted):
        return None  # the user's img_size says it
    else:
        grids = possible_grids(positions)
        if len(grids) != 1 and strict:
            raise UserError(
                f"{source}: cannot tell the grid of pos_embed: {ambiguity(positions, patch)}; set img_size to the "
                "file's own, or write the file with it: rayreid weights convert FILE --to safetensors --img-size "
                "HEIGHT WIDTH"
            )
        if len(grids) != 1:
            return None
        grid = grids[0]
    return None if grid == wanted else (resize_positions(table, grid, wanted, rows), grid)


def resize_positions(table: Tensor, grid: Grid, new_grid: Grid, rows: int = 1) -> Tensor:
    """Return a position embedding (1, rows + H·W, D) for a model with another grid: (1, rows + h·w, D).

    The first `rows`, the class token's, stay. Bilinear, align_corners=False (TransReID, `resize_pos_embed`).
    """
    grid_1DHW = table[:, rows:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid_1DHW, size=new_grid, mode="bilinear", align_corners=False)
    return torch.cat([table[:, :rows], resized.flatten(2).transpose(1, 2)], dim=1)


def resample_positions(table: Tensor, grid: Grid, new_grid: Grid, rows: int = 1) -> Tensor:
    """Return the position embedding (1, rows + H·W, D) resampled for a crop's grid: (1, rows + h·w, D).

    Bicubic without anti-aliasing, with scale factors (h + 0.1) / H and (w + 0.1) / W (DINO, `interpolate_pos_encoding`:
    the 0.1 prevents rounding from losing a row). At the model's own grid, the table itself is returned.
    """
    if grid == new_grid:
        return table
    grid_1DHW = table[:, rows:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    scale = [(new + 0.1) / old for new, old in zip(new_grid, grid, strict=True)]
    exact = table.is_cuda and torch.are_deterministic_algorithms_enabled()
    resampled = _interpolated_exactly(grid_1DHW, scale) if exact else _interpolated(grid_1DHW, scale)
    return torch.cat([table[:, :rows], resampled.flatten(2).transpose(1, 2)], dim=1)


def _interpolated(grid_1DHW: Tensor, scale: list[float]) -> Tensor:
    return F.interpolate(grid_1DHW, scale_factor=scale, mode="bicubic", align_corners=False)


def _interpolated_exactly(grid_1DHW: Tensor, scale: list[float]) -> Tensor:
    """`_interpolated` as a weighted sum over the old grid: on a GPU its own backward pass is not deterministic."""
    _, _, H, W = grid_1DHW.shape
    units = torch.eye(H * W, device=grid_1DHW.device, dtype=grid_1DHW.dtype).view(1, H * W, H, W)
    weights = _interpolated(units, scale)
    return (grid_1DHW.flatten(2)[..., None] * weights.flatten(2)).sum(dim=2).unflatten(2, weights.shape[2:])
