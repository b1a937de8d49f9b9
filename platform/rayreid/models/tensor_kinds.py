"""Kinds of tensors that cannot be loaded as weights: quantised, complex, sparse, and those without data."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rayreid.errors import UserError

NAMED = 3


def unusable(value: Tensor) -> str:
    """Return the kind of a tensor whose values are not a network's weights as they are; "" if they may be."""
    if value.is_meta:
        return "without data (meta device)"
    if value.layout != torch.strided or value.is_nested:
        return "sparse or nested"
    if value.is_quantized or (value.is_floating_point() and value.element_size() < 2):
        return f"quantised ({_dtype(value)})"
    return "complex" if value.is_complex() else ""


def check_usable(state: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError that names the tensors whose values are not weights as they are.

    Args:
        state: Name → tensor.
        source: The file, for the message.
    """
    _refuse({name: kind for name, value in state.items() if (kind := unusable(value))}, source)


def check_floating(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError that names the tensors of integers where the backbone has floating-point numbers.

    Args:
        state: Name → tensor, of the file.
        wanted: Name → tensor, of the backbone.
        source: The file, for the message.
    """
    integers = [name for name, value in state.items() if name in wanted and not value.is_floating_point()]
    _refuse({name: _dtype(state[name]) for name in integers if wanted[name].is_floating_point()}, source)


def _refuse(kinds: Mapping[str, str], source: str) -> None:
    if not kinds:
        return
    named = ", ".join(f"{name}: {kind}" for name, kind in list(kinds.items())[:NAMED])
    more = f" and {len(kinds) - NAMED} more" if len(kinds) > NAMED else ""
    raise UserError(
        f"{source} holds tensors that are not weights as they are ({named}{more}): save it again with dense tensors in "
        "float32, float16 or bfloat16"
    )


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
