"""Conversion of weights files between formats, and ONNX export. Needs no Ray."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from rayreid.console import Screen
from rayreid.errors import UserError
from rayreid.models.architecture import recognise
from rayreid.models.backbones import Backbone, build_backbone
from rayreid.models.checkpoints import Checkpoint, read_checkpoint, refusal
from rayreid.models.conversion import write_timm, write_transreid
from rayreid.models.normalisation import NORMALISED
from rayreid.models.onnx_export import export_onnx, require_onnx
from rayreid.models.weights import load_weights, read_header, save_backbone

SUFFIXES = {"safetensors": (".safetensors",), "timm": (".safetensors", ".pth"), "transreid": (".pth",)}
MARKS = {"safetensors": "rayreid"}  # the mark of a format in a file's name, where it is not the format's own name
FOREIGN: dict[str, Callable[[Path, Backbone], list[str]]] = {"timm": write_timm, "transreid": write_transreid}
OWN_FACTS = ("format", "backbone", "mean", "std", "img_size", "num_heads")


@dataclass(frozen=True)
class Loaded:
    """The backbone of a file, with the file's metadata: our header, or the facts of a file in a foreign format."""

    checkpoint: Checkpoint
    facts: dict[str, Any]
    backbone: Backbone


def convert_weights(
    file: str,
    to: str,
    output: str | None = None,
    img_size: Sequence[int] | None = None,
    num_heads: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    force: bool = False,
    strict: bool = True,
    screen: Screen | None = None,
) -> Path:
    """Write a weights file in another format: either every tensor of it, or nothing.

    Args:
        file: A weights file of any known origin.
        to: The format: safetensors (ours), timm or transreid.
        output: The file to write (default: in the folder of `file`, named after `to`).
        img_size: (height, width) in pixels for the new file; position embeddings of another grid are resampled.
        num_heads: Number of attention heads, if neither the file nor the width determines it.
        mean: Mean per channel, in [0, 1], that images are normalised with, if the file does not record it.
        std: Standard deviation per channel, in [0, 1], if the file does not record it.
        force: Replace an existing file.
        strict: Whether all tensors must fit; else those that fit are written, and the rest as initialised.
        screen: Shows what was done, and what the format cannot store.

    Returns:
        The path of the new file.

    Raises:
        UserError: The file contains no known backbone or lacks facts about it, the format cannot store the backbone,
            or the output cannot be written.
    """
    screen = screen or Screen()
    if to not in SUFFIXES:
        raise UserError(f"--to {to}: no such format; choose {', '.join(SUFFIXES)}")
    source = Path(file)
    target = Path(output) if output else source.with_name(f"{source.stem}.{MARKS.get(to, to)}{SUFFIXES[to][0]}")
    if target.suffix not in SUFFIXES[to]:
        raise UserError(
            f"--output {target}: name it {' or '.join(f'*{suffix}' for suffix in SUFFIXES[to])} for --to {to}"
        )
    _check_target(source, target, "--output", force)
    loaded = _load(source, strict, screen, img_size=img_size and list(img_size), num_heads=num_heads)
    if to == "safetensors":
        _save_own(source, target, loaded, mean, std, screen)
        notes = []
    else:
        notes = [*FOREIGN[to](target, loaded.backbone), *_lost(loaded)]
    count = len(loaded.backbone.state_dict())
    screen.say(f"written: {escape(str(target))} ({to}, {count} tensors, {_named(loaded.backbone)})")
    for note in notes:
        screen.say(f"  {escape(note)}")
    return target


def export_weights(
    file: str,
    onnx: str,
    img_size: Sequence[int] | None = None,
    num_heads: int | None = None,
    force: bool = False,
    strict: bool = True,
    screen: Screen | None = None,
) -> Path:
    """Write the backbone of a weights file as an ONNX model, then run the model and compare it with the backbone.

    Args:
        file: A weights file of any known origin.
        onnx: The file to write.
        img_size: (height, width) in pixels of the model's input images (default: the file's).
        num_heads: Number of attention heads, if neither the file nor the width determines it.
        force: Replace an existing file.
        strict: Whether all tensors must fit; else those that fit are written, and the rest as initialised.
        screen: Shows what was done.

    Returns:
        The path of the ONNX file.

    Raises:
        UserError: As for `convert_weights`; or a package is missing, or the exported model gives other features.
    """
    screen, source, target = screen or Screen(), Path(file), Path(onnx)
    _check_target(source, target, "--onnx", force)
    require_onnx()
    loaded = _load(source, strict, screen, img_size=img_size and list(img_size), num_heads=num_heads)
    facts: dict[str, Any] = {key: loaded.facts[key] for key in ("mean", "std") if key in loaded.facts}
    deviation = export_onnx(loaded.backbone, target, facts)
    height, width = loaded.backbone.spec["img_size"]
    screen.say(
        f"written: {escape(str(target))} (ONNX, {_named(loaded.backbone)}):"
        f" images (B, 3, {height}, {width}) to features (B, {loaded.backbone.num_features})"
    )
    screen.say(
        f"  compared with batches of {' and '.join(map(str, deviation.batches))}: differs by at most"
        f" {deviation.greatest:.1e} standard deviations of the features ({deviation.tolerance:.0e} allowed)"
    )
    return target


def _check_target(source: Path, target: Path, option: str, force: bool) -> None:
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise UserError(f"{option} {target}: {'it is a folder' if target.is_dir() else 'its folder does not exist'}")
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{option} {target}: it is the file to be read; choose another name")
    if target.exists() and not force:
        raise UserError(f"{option} {target}: it exists; choose another name, or --force to replace it")


def _load(path: Path, strict: bool, screen: Screen, **hint: Any) -> Loaded:
    """Build the backbone of a file and load every tensor (not strict: those that fit), in the widest of the dtypes."""
    checkpoint = read_checkpoint(path)
    header = read_header(path) if checkpoint.header else {}
    said = {key: value for key, value in hint.items() if value is not None}
    try:
        spec = recognise(checkpoint.state, header=header or None, hint={**checkpoint.facts_of_shape(), **said})
    except UserError as error:
        raise UserError(f"{path}: {refusal(checkpoint, error)}") from error
    backbone = build_backbone(**spec)
    floating = [tensor.dtype for tensor in checkpoint.state.values() if tensor.is_floating_point()]
    backbone.to(reduce(torch.promote_types, floating or [torch.float32]))
    report = load_weights(backbone, path, strict)
    if not report.whole:
        screen.say(f"not complete, the rest as initialised: {escape(report.faults())}")
    if report.resized:
        height, width = backbone.spec["img_size"]
        screen.say(f"resampled to {height}x{width}: {escape(', '.join(report.resized))}")
    if report.ignored:
        screen.say(f"left out on purpose: {escape(reasons(report.ignored))}")
    return Loaded(checkpoint, header or checkpoint.facts, backbone)


def _save_own(
    source: Path,
    path: Path,
    loaded: Loaded,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    screen: Screen,
) -> None:
    known: tuple[Any, Any] = (loaded.facts.get("mean"), loaded.facts.get("std"))
    origin = loaded.checkpoint.format
    if None in known and None in (mean, std):
        if origin not in NORMALISED:
            raise UserError(f"{source}: the file does not say how images are normalised; set --mean R G B --std R G B")
        known = NORMALISED[origin]
        screen.say(f"assumed, as in published files of this format: mean {listed(known[0])}, std {listed(known[1])}")
    facts = {key: value for key, value in loaded.facts.items() if key not in OWN_FACTS}
    save_backbone(path, loaded.backbone, mean or known[0], std or known[1], **facts)


def _lost(loaded: Loaded) -> list[str]:
    """Return notes on the facts of the source file that a foreign format cannot store."""
    known, spec = loaded.facts, loaded.backbone.spec
    facts = {"image size": "x".join(map(str, spec["img_size"]))}
    facts |= {key: listed(known[key]) for key in ("mean", "std") if key in known}
    facts |= {key: str(value) for key, value in known.items() if key not in OWN_FACTS}
    return [f"not in the file: {', '.join(f'{name} {value}' for name, value in facts.items())}"]


def _named(backbone: Backbone) -> str:
    name, stem = backbone.spec["name"], backbone.spec["stem"]
    return f"{name} {stem}" if name.startswith("vit") else str(name)


def reasons(ignored: Mapping[str, str]) -> str:
    """Format why tensors were left out, with the number of tensors for each reason."""
    return ", ".join(f"{reason} ({count})" for reason, count in Counter(ignored.values()).items())


def listed(numbers: Sequence[float]) -> str:
    """Format numbers in their shortest form, joined by slashes."""
    return "/".join(f"{number:g}" for number in numbers)
