"""Weights of a backbone: our safetensors files with their metadata, and loading from files of any origin."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from rayreid.errors import UserError, one_line
from rayreid.files import write_atomically
from rayreid.models.architecture import read_off
from rayreid.models.backbones import VITS, Backbone, build_backbone
from rayreid.models.checkpoints import HEADER_KEY, Checkpoint, describe, read_checkpoint, read_header_text
from rayreid.models.finiteness import check_finite
from rayreid.models.formats import TITLES
from rayreid.models.neck import UNUSED_PREFIX, Neck, named
from rayreid.models.positions import Grid, ambiguity, class_rows, fit_positions, is_assumed, patch_of
from rayreid.models.report import LoadReport
from rayreid.models.stems import Stem
from rayreid.models.tensor_kinds import check_floating
from rayreid.models.vit import DINOV3S, VARIANTS

BEST = "best.safetensors"
"""File in an artifact with the weights of the epoch that scored best. That epoch was chosen on the test itself, so
the file is only for the record: nothing continues from it."""

FORMAT = "rayreid-backbone/1"
NAMED_HEADS: dict[str, int] = {name: int(own["num_heads"]) for name, own in {**VITS, **VARIANTS, **DINOV3S}.items()}


def save_backbone(
    path: str | Path,
    backbone: Backbone,
    mean: Sequence[float],
    std: Sequence[float],
    neck: Neck | None = None,
    bnneck: Neck | None = None,
    **facts: Any,
) -> None:
    """Write a backbone as safetensors, atomically; dtypes are kept.

    Args:
        path: The file; its folder exists.
        backbone: A backbone made by `build_backbone`.
        mean: Mean per channel, in [0, 1], with which images are normalised for these weights.
        std: Standard deviation per channel, in [0, 1].
        neck: The layer between the feature and the one that is compared, if there is one.
        bnneck: The neck of a model that is compared by the feature before it.
        facts: Other JSON-able facts (method, epochs, dataset).
    """
    header = {**facts, "format": FORMAT, "backbone": backbone.spec, "mean": list(mean), "std": list(std)}
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    state |= named(neck) if neck is not None else {}
    state |= named(bnneck, UNUSED_PREFIX) if bnneck is not None else {}
    # safetensors' own `save_file` makes the file unreadable for all other users
    write_atomically(Path(path), save(state, metadata={HEADER_KEY: json.dumps(header)}))


def read_header(path: str | Path) -> dict[str, Any]:
    """Return the header of our weights file: format, backbone (its spec), mean, std and further facts.

    Raises:
        UserError: The file does not exist or is not one of ours.
    """
    return _header(Path(path), read_header_text(Path(path)))


def load_backbone(path: str | Path, strict: bool = True, **overrides: Any) -> tuple[Backbone, dict[str, Any]]:
    """Build the backbone that our weights file describes, and load it.

    Args:
        path: A file that `save_backbone` wrote.
        strict: See `load_weights`.
        overrides: Arguments of `build_backbone` that replace the file's, e.g. `drop_path` or `img_size`.

    Returns:
        The backbone (float32, CPU) and the file's header.
    """
    checkpoint = read_checkpoint(Path(path))
    header = _header(Path(path), checkpoint.header)
    spec = {**header["backbone"], **overrides}
    backbone = build_backbone(**spec)
    state, report = _fit(backbone, checkpoint, str(path), header, strict)
    backbone.load_state_dict(state, strict=report.whole)
    return backbone, header


def load_weights(backbone: Backbone, path: str | Path, strict: bool = True) -> LoadReport:
    """Load weights of any known origin into a backbone (`rayreid.models.formats` lists them).

    A position embedding for another grid is resampled. If the weights are refused, the backbone does not change.

    Args:
        backbone: A backbone made by `build_backbone`.
        path: A file, or `timm:NAME`.
        strict: Whether every tensor of the backbone must be in the file, with its shape, and every tensor of the file
            must be accounted for. Otherwise the tensors that fit are loaded and the report lists the rest.

    Raises:
        UserError: The file does not exist or is not a weights file, its names or shapes do not fit the backbone (if not
            strict: none fits), its number of attention heads is known to be different, or a tensor is not finite.
    """
    state, report = _read(backbone, path, strict)
    backbone.load_state_dict(state, strict=report.whole)
    return report


def check_weights(backbone: Backbone, path: str | Path, strict: bool = True) -> LoadReport:
    """Return the report of `load_weights` without loading, or raise its error.

    The backbone may be on the meta device.
    """
    return _read(backbone, path, strict)[1]


def _header(path: Path, text: str) -> dict[str, Any]:
    if not text:
        raise UserError(f"{path} was not written by rayreid (it has no header): state which backbone it contains")
    try:
        header: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its header is not JSON ({one_line(error)})") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged: its header is no JSON object")
    if header.get("format") != FORMAT:
        raise UserError(f"{path} has format {header.get('format')!r}; this version of rayreid reads {FORMAT!r}")
    if not isinstance(header.get("backbone"), dict):
        raise UserError(f"{path} is damaged: its header does not describe a backbone")
    return header


def _read(backbone: Backbone, path: str | Path, strict: bool) -> tuple[dict[str, Tensor], LoadReport]:
    checkpoint = read_checkpoint(path)
    header = _header(Path(path), checkpoint.header) if checkpoint.header else {}
    return _fit(backbone, checkpoint, str(path), header, strict)


def _fit(
    backbone: Backbone, checkpoint: Checkpoint, source: str, header: dict[str, Any], strict: bool
) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the tensors to load into the backbone, and the report about them."""
    wanted = backbone.state_dict()
    state = dict(checkpoint.state)
    check_floating(state, wanted, source)
    _check_heads(backbone, checkpoint, source, header)
    assumed = _assumed_grid(backbone, state, header or checkpoint.facts)
    resized = _fit_positions(backbone, state, source, header or checkpoint.facts, strict)
    counters = _absent_counters(wanted, state)
    state |= {name: torch.zeros(wanted[name].shape, dtype=wanted[name].dtype) for name in counters}
    other_shape = {
        name: (tuple(state[name].shape), tuple(wanted[name].shape))
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    }
    fitting = {name: state[name] for name in wanted if name in state and name not in other_shape}
    report = LoadReport(
        source,
        checkpoint.format,
        loaded=[name for name in fitting if name not in counters],
        resized={name: grids for name, grids in resized.items() if name in fitting},
        assumed=assumed,
        counted_anew=counters,
        ignored=checkpoint.ignored,
        missing=[name for name in wanted if name not in state],
        unexpected=[name for name in state if name not in wanted],
        other_shape=other_shape,
        differs=checkpoint.differs,
        facts=checkpoint.facts,
        header=header,
    )
    if strict and checkpoint.differs:
        raise UserError(
            f"{source} is {TITLES[report.format]} of another architecture: {report.differs}; "
            f"{report.without_strict(len(wanted))}"
        )
    if not report.loaded or (strict and not report.whole):
        raise UserError(
            f"{source} does not fit backbone {backbone.spec['name']} ({describe(wanted)}): {report.faults()}. "
            f"The file is {TITLES[report.format]} and seems to hold {describe(checkpoint.state)}"
            f"{_other_name(backbone, checkpoint.state)}; {report.without_strict(len(wanted))}"
        )
    check_finite(fitting, source)
    return fitting, report


def _other_name(backbone: Backbone, state: Mapping[str, Tensor]) -> str:
    """Return the backbone name to set, if the tensors are those of another one; "" if not, or if nothing fits."""
    try:
        name = read_off(state).spec["name"]
    except UserError:
        return ""
    return "" if name == backbone.spec["name"] else f" (set backbone.name: {name})"


def _check_heads(backbone: Backbone, checkpoint: Checkpoint, source: str, header: dict[str, Any]) -> None:
    """Raise a UserError if the number of attention heads is known to be different.

    No shape reveals that number: weights with another number would load and be useless.
    """
    spec = header.get("backbone", {})
    theirs = checkpoint.facts.get("num_heads") or spec.get("num_heads") or NAMED_HEADS.get(str(spec.get("name")))
    token, own = checkpoint.state.get("cls_token"), getattr(backbone, "cls_token", None)
    if theirs is None or token is None or own is None or token.shape != own.shape:
        return
    blocks: Any = backbone.blocks
    ours = blocks[0].attn.num_heads
    if theirs != ours:
        raise UserError(
            f"{source} is of a ViT with {theirs} attention heads, which its tensors do not show, and backbone "
            f"{backbone.spec['name']} has {ours}; set num_heads: {theirs}"
        )


def _absent_counters(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the step counters of batch norms that a file lacks although it has the norm; nothing uses them."""
    counter, beside = "num_batches_tracked", "running_mean"
    names = [name for name in wanted if name.endswith(counter) and name not in state]
    return [name for name in names if name.removesuffix(counter) + beside in state]


def _fit_positions(
    backbone: Backbone, state: dict[str, Tensor], source: str, known: Mapping[str, Any], strict: bool
) -> dict[str, tuple[Grid, Grid]]:
    """Resample the position embedding in `state` to the backbone's grid, and return its name → old and new grid."""
    stem = getattr(backbone, "patch_embed", None)
    table = state.get("pos_embed")
    if not isinstance(stem, Stem) or table is None or table.dim() != 3:
        return {}
    fitted = fit_positions(table, class_rows(state), _own_grid(known), stem.grid_size, stem.patch_size, source, strict)
    if fitted is None:
        return {}
    state["pos_embed"], grid = fitted
    return {"pos_embed": (grid, stem.grid_size)}


def _assumed_grid(backbone: Backbone, state: Mapping[str, Tensor], known: Mapping[str, Any]) -> str:
    """Return what the position embedding is taken to be if nothing but the backbone decides it, in words; "" if not."""
    stem, table = getattr(backbone, "patch_embed", None), state.get("pos_embed")
    if not isinstance(stem, Stem) or table is None or table.dim() != 3:
        return ""
    positions = table.shape[1] - class_rows(state)
    if not is_assumed(positions, _own_grid(known), stem.grid_size):
        return ""
    rows, columns = stem.grid_size
    return f"pos_embed assumed to be {rows}x{columns} ({ambiguity(positions, stem.patch_size)})"


def _own_grid(known: Mapping[str, Any]) -> Grid | None:
    """Return the grid that our header states, or the settings in a file of other origin."""
    spec = known.get("backbone", known)
    if "img_size" not in spec:
        return None
    height, width = spec["img_size"]
    down, across = patch_of(spec)
    return height // down, width // across


def weights_of(folder: Path) -> Path:
    """Return the weights file of an artifact of pre-training, fine-tuning or adaptation, or of a user's checkpoint.

    It is that of the last epoch; the weights of the epoch that scored best on query and gallery are only for the
    record.
    """
    [path] = (path for path in folder.glob("*.safetensors") if path.name != BEST)
    return path
