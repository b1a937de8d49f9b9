"""What is logged of gradients."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def gradient_norms(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The 2-norm of each parameter's gradient, scalars; parameters without one are left out."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return list(torch._foreach_norm(gradients)) if gradients else []


def norm_scalars(norms: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of the norms of all tensors: `grad_norm`, that of all as one vector, and `grad_norm_max`, the largest.

    The second is what clipping tensor by tensor acts upon. Stays on the device: nothing waits for it.
    """
    if not norms:
        return {}
    together = torch.stack(list(norms))
    return {"grad_norm": torch.linalg.vector_norm(together), "grad_norm_max": together.max()}
