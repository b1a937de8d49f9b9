"""The norms of gradients: what is logged of them, and clipping to one."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def gradient_norms(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The 2-norm of each parameter's gradient, scalars; parameters without one are left out."""
    gradients = _gradients(parameters)
    return list(torch._foreach_norm(gradients)) if gradients else []


def norm_scalars(norms: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of the norms of all tensors: `grad_norm`, that of all as one vector, and `grad_norm_max`, the largest.

    The second is what clipping tensor by tensor acts upon. Stays on the device: nothing waits for it.
    """
    if not norms:
        return {}
    together = torch.stack(list(norms))
    return {"grad_norm": torch.linalg.vector_norm(together), "grad_norm_max": together.max()}


@torch.no_grad()
def clip_each(parameters: Iterable[Tensor], norms: Sequence[Tensor], clip: float) -> None:
    """Scale each parameter's gradient down to a 2-norm of `clip`; `norms` is what `gradient_norms` says of them."""
    if norms:
        scales = torch._foreach_mul(torch._foreach_reciprocal(torch._foreach_add(list(norms), 1e-6)), clip)
        torch._foreach_mul_(_gradients(parameters), torch._foreach_clamp_max(scales, 1.0))


@torch.no_grad()
def clip_together(parameters: Iterable[Tensor], norms: Sequence[Tensor], clip: float) -> None:
    """The same of all gradients as one vector."""
    if norms:
        norm = torch.linalg.vector_norm(torch.stack(list(norms)))
        torch._foreach_mul_(_gradients(parameters), (clip / (norm + 1e-6)).clamp(max=1.0))


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
