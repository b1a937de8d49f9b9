"""Weights of a backbone: our safetensors files with their facts, and loading from files of any origin."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from rayreid.errors import UserError
from rayreid.models.backbones import Backbone, build_backbone
from rayreid.models.checkpoints import HEADER_KEY, Checkpoint, describe, read_checkpoint, read_header_text
from rayreid.models.stems import Stem

FORMAT = "rayreid-backbone/1"
NAMED_KEYS = 5


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did. Every tensor of the backbone was loaded, or it would have raised.

    Attributes:
        format: origin of the file: "rayreid", "pretraining", "reid" or "plain" (see `Checkpoint`).
        loaded: names of all tensors loaded.
        resized: those of them that were resampled to another size.
        ignored: names in the file left out on purpose (heads, necks, classifiers).
        missing: always empty.
        unexpected: always empty.
        header: our header; empty for files of other origin.
    """

    format: str
    loaded: list[str]
    resized: list[str]
    ignored: list[str]
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    header: dict[str, Any] = field(default_factory=dict)


def save_backbone(
    path: str | Path, backbone: Backbone, mean: Sequence[float], std: Sequence[float], **facts: Any
) -> None:
    """Write a backbone as safetensors, atomically; dtypes are kept.

    Args:
        path: the file; its folder exists.
        backbone: made by `build_backbone`.
        mean: per channel, in [0, 1]: how images are normalised for these weights.
        std: likewise.
        facts: anything else JSON-able worth knowing (method, epochs, data set).
    """
    path = Path(path)
    header = {**facts, "format": FORMAT, "backbone": backbone.spec, "mean": list(mean), "std": list(std)}
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(state, unfinished, metadata={HEADER_KEY: json.dumps(header)})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of our weights file: format, backbone (its spec), mean, std and further facts.

    Raises:
        UserError: no such file, or not one of ours.
    """
    return _header(Path(path), read_header_text(Path(path)))


def load_backbone(path: str | Path, **overrides: Any) -> tuple[Backbone, dict[str, Any]]:
    """Build the backbone that our weights file describes, and load it.

    Args:
        path: a file of `save_backbone`.
        overrides: arguments of `build_backbone` that replace the file's, e.g. `drop_path` or `img_size`.

    Returns:
        The backbone (float32, CPU) and the file's header.
    """
    checkpoint = read_checkpoint(Path(path))
    header = _header(Path(path), checkpoint.header)
    spec = {**header["backbone"], **overrides}
    backbone = build_backbone(**spec)
    _load(backbone, checkpoint, Path(path), header)
    return backbone, header


def load_weights(backbone: Backbone, path: str | Path) -> LoadReport:
    """Load weights of any known origin into a backbone, every tensor or none.

    Known are our own files, pre-training checkpoints of TransReID-SSL and DINO (the teacher is taken), ReID
    models (`base.*`; neck and classifier are left out) and bare backbones of DINO or timm. A position
    embedding of another grid is resampled.

    Raises:
        UserError: no such file, not a weights file, or names or shapes that do not fit the backbone.
    """
    checkpoint = read_checkpoint(Path(path))
    header = _header(Path(path), checkpoint.header) if checkpoint.header else {}
    return _load(backbone, checkpoint, Path(path), header)


def resize_positions(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embedding (1, 1 + H·W, D), class token first, for a model of another grid: (1, 1 + h·w, D).

    Bilinear, align_corners=False (TransReID, `resize_pos_embed`).
    """
    grid_1DHW = table[:, 1:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid_1DHW, size=new_grid, mode="bilinear", align_corners=False)
    return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def _header(path: Path, text: str) -> dict[str, Any]:
    if not text:
        raise UserError(f"{path} was not written by rayreid (it has no header): say which backbone it holds")
    header: dict[str, Any] = json.loads(text)
    if header.get("format") != FORMAT:
        raise UserError(f"{path} has format {header.get('format')!r}; this version of rayreid reads {FORMAT!r}")
    return header


def _load(backbone: Backbone, checkpoint: Checkpoint, path: Path, header: dict[str, Any]) -> LoadReport:
    wanted = backbone.state_dict()
    state = dict(checkpoint.state)
    resized = _fit_positions(backbone, state, path, header)
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    other_shape = [
        f"{name} (file {tuple(state[name].shape)}, backbone {tuple(wanted[name].shape)})"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("other shape", other_shape)]
    if missing or unexpected or other_shape:
        details = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in faults if names)
        spec = backbone.spec
        raise UserError(
            f"{path} does not fit backbone {spec['name']} ({describe(wanted)}): {details}. "
            f"The file seems to hold {describe(checkpoint.state)}"
        )
    backbone.load_state_dict(state, strict=True)
    return LoadReport(checkpoint.format, list(wanted), resized, checkpoint.ignored, header=header)


def _fit_positions(backbone: Backbone, state: dict[str, Tensor], path: Path, header: dict[str, Any]) -> list[str]:
    """Bring the position embedding in `state` to the backbone's grid; names of what was resampled."""
    stem = getattr(backbone, "patch_embed", None)
    table = state.get("pos_embed")
    if not isinstance(stem, Stem) or table is None or table.dim() != 3:
        return []
    positions = table.shape[1] - 1
    grid = _own_grid(header) if header else _guessed_grid(positions, stem.grid_size, path)
    if grid[0] * grid[1] != positions:
        return []  # refused by its shape
    if grid == stem.grid_size:
        return []
    state["pos_embed"] = resize_positions(table, grid, stem.grid_size)
    return ["pos_embed"]


def _own_grid(header: dict[str, Any]) -> tuple[int, int]:
    height, width = header["backbone"]["img_size"]
    patch = header["backbone"].get("patch_size", 16)
    return height // patch, width // patch


def _guessed_grid(positions: int, grid: tuple[int, int], path: Path) -> tuple[int, int]:
    """Grid of a file that does not say: the backbone's own if the number fits, else square, 2:1 or 3:1."""
    if positions == grid[0] * grid[1]:
        return grid
    for ratio in (1, 2, 3):
        width = math.isqrt(positions // ratio)
        if positions > 0 and ratio * width * width == positions:
            return ratio * width, width
    raise UserError(f"{path}: cannot tell the grid of {positions} positions in pos_embed (not square, 2:1 or 3:1)")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED_KEYS]) + (", …" if len(names) > NAMED_KEYS else "")
