"""Norms of gradients: the scalars that are logged, and clipping."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def gradient_norms(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the 2-norm of each parameter's gradient, as scalars; parameters without a gradient are skipped."""
    gradients = _gradients(parameters)
    return list(torch._foreach_norm(gradients)) if gradients else []


def norm_scalars(norms: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return `grad_norm`, the norm of all gradients as one vector, and `grad_norm_max`, the largest norm of a tensor.

    The second is the one that matters for clipping tensor by tensor. The results stay on the device, so nothing waits
    for them.
    """
    if not norms:
        return {}
    together = torch.stack(list(norms))
    return {"grad_norm": torch.linalg.vector_norm(together), "grad_norm_max": together.max()}


@torch.no_grad()
def clip_each(parameters: Iterable[Tensor], norms: Sequence[Tensor], clip: float) -> None:
    """Scale each parameter's gradient down to a 2-norm of at most `clip`; `norms` is the result of `gradient_norms`."""
    if norms:
        scales = torch._foreach_mul(torch._foreach_reciprocal(torch._foreach_add(list(norms), 1e-6)), clip)
        torch._foreach_mul_(_gradients(parameters), torch._foreach_clamp_max(scales, 1.0))


@torch.no_grad()
def clip_together(parameters: Iterable[Tensor], norms: Sequence[Tensor], clip: float) -> None:
    """Scale all gradients down together, so that their 2-norm as one vector is at most `clip`."""
    if norms:
        norm = torch.linalg.vector_norm(torch.stack(list(norms)))
        torch._foreach_mul_(_gradients(parameters), (clip / (norm + 1e-6)).clamp(max=1.0))


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
