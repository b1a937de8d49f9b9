"""Weights that are not finite, as a training that diverged leaves them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rayreid.errors import UserError
from rayreid.models.tensor_kinds import unusable

NAMED = 5


def not_finite(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of tensors with values that are not finite → how many of which kind, in words."""
    floating = {name: value for name, value in state.items() if value.is_floating_point() and not unusable(value)}
    return {name: _counted(value) for name, value in floating.items() if not bool(torch.isfinite(value).all())}


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError that names the tensors with values that are not finite.

    Args:
        state: Name → tensor.
        source: The file, for the message.
    """
    found = not_finite(state)
    if not found:
        return
    named = [f"{name} ({count})" for name, count in list(found.items())[:NAMED]]
    more = f" and {len(found) - NAMED} more (rayreid weights inspect lists them)" if len(found) > NAMED else ""
    raise UserError(
        f"{source} holds weights that are not finite: {', '.join(named)}{more}; its training diverged: take an earlier "
        "checkpoint"
    )


def _counted(value: Tensor) -> str:
    nan, infinite = int(value.isnan().sum()), int(value.isinf().sum())
    kinds = [f"{count:,} {what}" for count, what in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(kinds)} of {value.numel():,} values"
