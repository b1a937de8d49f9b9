"""Pre-trained models of timm by name: `timm:vit_small_patch16_224.augreg_in21k`."""

import difflib
import urllib.error
import urllib.request
from pathlib import Path

import timm
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import get_pretrained_cfg
from torch import nn

from rayreid.errors import UserError

PREFIX = "timm:"
_FILES = ("model.safetensors", "pytorch_model.bin")
_PATIENCE = 10.0
"""Seconds to wait for the hub's first answer; its own client takes a minute to give up."""


def is_name(text: str | Path) -> bool:
    """Return whether this names a model of timm instead of a file."""
    return str(text).startswith(PREFIX)


def full_name(text: str) -> str:
    """Return the name with the tag of its weights; without a tag, timm's default tag is added.

    Raises:
        UserError: timm has no weights with that name.
    """
    name = text.removeprefix(PREFIX)
    known = timm.list_models(pretrained=True)
    if "." not in name and (cfg := get_pretrained_cfg(name)) is not None and cfg.tag:
        name = f"{name}.{cfg.tag}"
    if name in known:
        return PREFIX + name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    raise UserError(f"timm has no pre-trained weights {name!r}; similar names: {', '.join(near) or 'none'}")


def pretrained(text: str) -> nn.Module:
    """Return the model with its weights, from the local cache or the hub.

    Raises:
        UserError: timm has no weights with that name, or they are not in the cache and cannot be fetched.
    """
    name = full_name(text).removeprefix(PREFIX)
    cfg = get_pretrained_cfg(name)
    repository = cfg.hf_hub_id if cfg is not None else None
    if repository and not _cached(repository) and (constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT)):
        raise _unreachable(name, repository)
    try:
        return timm.create_model(name, pretrained=True)
    except OSError as error:
        raise _unreachable(name, repository or "its address") from error


def _cached(repository: str) -> bool:
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in _FILES)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True  # an answer, although an unfriendly one
    except OSError:
        return False


def _unreachable(name: str, repository: str) -> UserError:
    return UserError(
        f"{PREFIX}{name} is not in the local cache and {constants.ENDPOINT} cannot be reached: download "
        f"{_FILES[0]} of {repository} on a machine with a network and give the file"
    )
