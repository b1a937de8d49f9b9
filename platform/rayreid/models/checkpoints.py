"""Checkpoint files of other projects: read without running code, and brought to a backbone's own names."""

import argparse
import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rayreid.errors import UserError

HEADER_KEY = "rayreid"
# What may stand beside a backbone: heads of every origin, and buffers that are computed, not learnt.
IGNORED_PREFIXES = ("head.", "head_dist.", "fc.", "pre_logits.")
IGNORED_SUFFIXES = (".relative_position_index", ".attn_mask")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one file under the backbone's own names.

    Attributes:
        format: "rayreid" (ours), "pretraining" (the teacher of a TransReID-SSL or DINO checkpoint), "reid" (a
            ReID model: `base.*` beside neck and classifier) or "plain" (a bare DINO or timm backbone).
        state: name -> tensor.
        ignored: names in the file that are no part of a backbone and were left out on purpose.
        header: our header as JSON text, "" for files of other origin.
        facts: what a file of other origin says of itself beside its tensors: `arch`, `epoch`, `img_size`, `num_heads`.
    """

    format: str
    state: dict[str, Tensor]
    ignored: list[str] = field(default_factory=list)
    header: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a weights file of any known origin.

    safetensors (ours or plain), or a PyTorch file read with `weights_only=True`: nothing in it is executed.

    Raises:
        UserError: the file is missing, no weights file, asks to run code, or holds no backbone.
    """
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    if _is_zip_or_pickle(path):
        return _adapt(path, _read_torch(path))
    with _open_safetensors(path) as file:
        header = (file.metadata() or {}).get(HEADER_KEY, "")
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return Checkpoint("rayreid", state, header=header) if header else _adapt(path, state)


def read_header_text(path: Path) -> str:
    """Our header in a weights file as JSON text, without reading its tensors; "" for files of other origin.

    Raises:
        UserError: the file is missing or no weights file.
    """
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    if _is_zip_or_pickle(path):
        return ""
    with _open_safetensors(path) as file:
        return (file.metadata() or {}).get(HEADER_KEY, "")


def _is_zip_or_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors begin with a length of 8 bytes, whose first may be that of a pickle, and then "{"
    length = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and length < path.stat().st_size:
        return False
    return start[:2] == b"PK" or start[:1] == b"\x80"  # torch.save since 1.6 and before


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a weights file (neither safetensors nor a PyTorch checkpoint) or damaged: {error}"
        ) from error


def _read_torch(path: Path) -> Any:
    with _harmless_globals():
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            called = re.search(r"GLOBAL (\S+)", str(error))
            if called is None:
                raise UserError(f"{path} is not a PyTorch checkpoint, or not one that is safe to read") from error
            raise UserError(
                f"{path} was refused: loading it would use {called[1]}, and so could run code; "
                "save the state dict alone"
            ) from error
        except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
            reason = str(error).split(". ")[0]
            raise UserError(f"{path} is not a PyTorch checkpoint, or it is damaged: {reason}") from error


@contextlib.contextmanager
def _harmless_globals() -> Iterator[None]:
    """Allow what published checkpoints carry beside tensors: argparse settings, NumPy numbers (best mAP)."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    number_types = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    with torch.serialization.safe_globals(
        [argparse.Namespace, np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar"), *number_types]
    ):
        yield


def _adapt(path: Path, content: Any) -> Checkpoint:
    """Find the backbone in what a file of other origin holds, and strip the prefixes around its names."""
    origin, content = _unwrap(path, content)
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path} holds no weights: its entries are {', '.join(map(str, list(content)[:5])) or 'none'}")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    ignored: list[str] = []
    if any(name.startswith("backbone.") for name in state):
        state = _below("backbone.", state, ignored, beside=("head.", "projector.", "predictor."))
    elif any(name.startswith("base.") for name in state):
        origin = "reid"
        state = _below("base.", state, ignored, beside=("bottleneck", "classifier"))
    ours = {}
    for name, value in state.items():
        if name.startswith(IGNORED_PREFIXES) or name.endswith(IGNORED_SUFFIXES):
            ignored.append(name)
        else:
            ours[name] = value
    return Checkpoint(origin, ours, ignored)


def _unwrap(path: Path, content: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
    if isinstance(content.get("teacher"), Mapping):
        return "pretraining", content["teacher"]
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            return "plain", content[key]
    return "plain", content


def _below(prefix: str, state: dict[str, Tensor], ignored: list[str], beside: tuple[str, ...]) -> dict[str, Tensor]:
    """Names without `prefix`; those `beside` go to `ignored`; any others stay, to be refused by name."""
    kept = {}
    for name, value in state.items():
        if name.startswith(beside):
            ignored.append(name)
        else:
            kept[name.removeprefix(prefix)] = value
    return kept


def describe(state: Mapping[str, Tensor]) -> str:
    """What a backbone's tensors seem to be, in words: for messages about files that do not fit."""
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if "cls_token" in state and blocks:
        tokens = state["pos_embed"].shape[1] - 1 if "pos_embed" in state else "no"
        width = state["cls_token"].shape[-1]
        return f"a ViT with {_stem(state)} stem, width {width}, {len(blocks)} blocks, {tokens} positions"
    if any(name.startswith("layers.0.blocks.") for name in state):
        return "a Swin transformer"
    if "layer4.0.conv1.weight" in state:
        return "a ResNet"
    return f"something else ({', '.join(list(state)[:3])}, …)"


def _stem(state: Mapping[str, Tensor]) -> str:
    if any(name.startswith("patch_embed.conv.1.IN.") for name in state):
        return "ics"
    return "conv" if any(name.startswith("patch_embed.conv.") for name in state) else "patchify"
