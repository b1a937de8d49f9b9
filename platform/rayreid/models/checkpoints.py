"""Checkpoint files of other projects, read without running code and renamed to a backbone's own names."""

import argparse
import contextlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rayreid.errors import UserError, one_line
from rayreid.models import hub
from rayreid.models.checkpoint_contents import Checkpoint, Contents
from rayreid.models.formats import TITLES
from rayreid.models.neck import part_neck
from rayreid.models.tensor_kinds import check_usable
from rayreid.models.translation import adapt
from rayreid.models.wrappers import opened

HEADER_KEY = "rayreid"
_SAVE_AGAIN = (
    "if you trust its source, load it where it was written and save its tensors alone, with "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read weights of any known origin.

    Args:
        path: A safetensors file (ours or plain), a PyTorch file, which is read with `weights_only=True` (nothing in it
            is executed), or `timm:NAME`, a pre-trained model that timm fetches from its hub.

    Raises:
        UserError: The file is missing, is not a weights file, is damaged, asks to run code, or contains no tensors or
            quantised or sparse ones; or timm does not know the name or cannot fetch it.
    """
    if hub.is_name(path):
        return of_timm(hub.pretrained(str(path)))
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    checkpoint = _read(path)
    check_usable(checkpoint.state, str(path))
    return checkpoint


def _read(path: Path) -> Checkpoint:
    if _is_zip_or_pickle(path):
        return adapt(Contents(*opened(_read_torch(path), str(path))), str(path))
    with _open_safetensors(path) as file:
        header = (file.metadata() or {}).get(HEADER_KEY, "")
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if not header:
        return adapt(Contents(*opened(state, str(path))), str(path))
    state, ignored = part_neck(state)
    return Checkpoint("rayreid", state, ignored, header=header)


def of_timm(model: nn.Module) -> Checkpoint:
    """Return the weights of a model made by timm, with its number of heads, and the mean and std of its training."""
    cfg: Any = model.pretrained_cfg
    facts: dict[str, Any] = {"arch": cfg["architecture"], "mean": list(cfg["mean"]), "std": list(cfg["std"])}
    if isinstance(model, VisionTransformer):
        block: Any = model.blocks[0]
        facts |= {"num_heads": block.attn.num_heads, "img_size": model.patch_embed.img_size}
    return replace(adapt(Contents(model.state_dict(), "timm", facts)), format="timm")


def read_header_text(path: Path) -> str:
    """Return our header in a weights file as JSON text, without reading its tensors; "" for files of other origin.

    Raises:
        UserError: The file is missing or not a weights file.
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
    # safetensors files begin with a length of 8 bytes, which may start like a pickle, and then "{"
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
                raise UserError(
                    f"{path} is not a PyTorch checkpoint, or not one that is safe to read; {_SAVE_AGAIN}"
                ) from error
            raise UserError(
                f"{path} was refused: loading it would use {called[1]}, and so could run code; {_SAVE_AGAIN}"
            ) from error
        except Exception as error:  # for damaged bytes, PyTorch's reader raises arbitrary exceptions
            reason = one_line(error, "all").split(". ")[0]
            raise UserError(f"{path} is not a PyTorch checkpoint, or it is damaged: {reason}") from error


class _Settings:
    """A stand-in for the settings (yacs) that Swin's authors save with their weights.

    It makes plain dictionaries, because PyTorch's safe reader does not fill classes derived from them.
    """

    def __new__(cls) -> Any:
        return OrderedDict()


@contextlib.contextmanager
def _harmless_globals() -> Iterator[None]:
    """Allow the objects that published checkpoints contain besides tensors: settings, and NumPy numbers (best mAP)."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # NumPy's stubs leave it out
    number_types = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    with torch.serialization.safe_globals(
        [
            argparse.Namespace,
            (_Settings, "yacs.config.CfgNode"),
            np.dtype,
            scalar,
            (scalar, "numpy.core.multiarray.scalar"),
            *number_types,
        ]
    ):
        yield


def refusal(checkpoint: Checkpoint, error: UserError) -> str:
    """Return why a file's backbone cannot be built: by the family's name where it is known, else by its tensors."""
    if not checkpoint.differs:
        return str(error)
    return f"it is {TITLES[checkpoint.format]} of another architecture: {checkpoint.differs}"


def describe(state: Mapping[str, Tensor]) -> str:
    """Return a description of a backbone's tensors in words, for messages about files that do not fit."""
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if "cls_token" in state and blocks:
        table, token = state.get("pos_embed"), state["cls_token"]
        tokens = table.shape[1] - 1 if table is not None and table.dim() == 3 else "no"
        width = token.shape[-1] if token.dim() else "unknown"
        return f"a ViT with {stem_of(state)} stem, width {width}, {len(blocks)} blocks, {tokens} positions"
    if any(name.startswith("layers.0.blocks.") for name in state):
        return "a Swin transformer"
    if "layer4.0.conv1.weight" in state:
        return "a ResNet"
    return f"something else ({', '.join(list(state)[:3])}, …)"


def stem_of(state: Mapping[str, Tensor]) -> str:
    """Return the stem of a ViT's tensors: patchify, conv or ics."""
    if any(name.startswith("patch_embed.conv.1.IN.") for name in state):
        return "ics"
    return "conv" if any(name.startswith("patch_embed.conv.") for name in state) else "patchify"
