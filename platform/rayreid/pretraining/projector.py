"""Projectors and predictors: the multi-layer perceptrons between a backbone's feature and the contrasted vector."""

from itertools import pairwise

from torch import Tensor, nn

from rayreid.models.norms import SyncedBatchNorm
from rayreid.training.compilation import compilable


def mlp(widths: tuple[int, ...], hidden_norm: bool, last_norm: bool) -> nn.Sequential:
    """Return linear maps with ReLU between them: (N, widths[0]) → (N, widths[-1]).

    MoCo v3 has batch norm after every layer (after the last one without scale and shift), MoBY after all layers but the
    last, MoCo v2 none. Batch norm is synchronised over workers. A layer before a batch norm has no bias, because the
    shift of the norm replaces it.

    Args:
        widths: Widths of the input, the hidden layers and the output.
        hidden_norm: Whether batch norm follows hidden layers.
        last_norm: Whether batch norm, without scale and shift, follows the last layer.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers.append(nn.Linear(before, after, bias=not hidden_norm))
        layers += [SyncedBatchNorm(after)] if hidden_norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not last_norm))
    layers += [SyncedBatchNorm(widths[-1], affine=False)] if last_norm else []
    return nn.Sequential(*layers)


@compilable(breaks=True)
def projected(projector: nn.Module, x: Tensor) -> Tensor:
    """(N, D) → (N, D'); synchronised batch norm waits for other workers in between."""
    out: Tensor = projector(x)
    return out
