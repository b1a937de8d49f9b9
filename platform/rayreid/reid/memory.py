"""Cluster memory: one vector per cluster, which classifies a batch and follows it.

Cluster contrast (Dai et al., arXiv 2103.11568). A cluster's vector is moved by its every instance in turn ("mean") or
only by the least similar one in the batch ("hard").
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayreid.errors import UserError
from rayreid.training.parallel import gather_rows

Variant = Literal["mean", "hard"]


class ClusterMemory(nn.Module):
    """The memory and its loss. It is the same on all workers if they begin with the same centres.

    Attributes:
        features: (C, D), of length 1.

    Args:
        centres: (C, D) float, normalised here.
        temperature: that similarities are divided by.
        momentum: part of the old vector that an update keeps, in [0, 1).
        variant: which instances move a cluster's vector: all in turn, or the least similar one of the batch.

    Raises:
        UserError: no cluster, or a number out of range.
    """

    features: Tensor

    def __init__(self, centres: Tensor, temperature: float = 0.05, momentum: float = 0.2, variant: Variant = "hard"):
        super().__init__()
        if not len(centres):
            raise UserError("a cluster memory without clusters: none was found; try a larger eps or fewer min_samples")
        if temperature <= 0 or not 0 <= momentum < 1:
            raise UserError(
                f"a cluster memory with temperature {temperature:g}, momentum {momentum:g}: "
                "need a temperature above 0 and a momentum from 0 to below 1"
            )
        self.temperature, self.momentum, self.variant = temperature, momentum, variant
        self.register_buffer("features", F.normalize(centres.detach(), dim=1))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over the similarities to all clusters ÷ temperature, averaged over this worker's batch.

        Args:
            inputs: (B, D) features, normalised here.
            targets: (B,) int64 clusters in [0, C).

        Returns:
            Scalar. No gradient flows into the memory.
        """
        return F.cross_entropy(F.normalize(inputs, dim=1) @ self.features.t() / self.temperature, targets)

    @torch.no_grad()
    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """Move the memory towards a batch: memory ← normalise(m · memory + (1 − m) · x).

        Call it once per optimizer step, after the loss: that is of the memory as it was. All workers must call it with
        equally many rows; each takes the rows of all, in order of rank.

        Args:
            inputs: (B, D) features, normalised here.
            targets: (B,) int64 clusters in [0, C).
        """
        instances = F.normalize(gather_rows(inputs.detach()), dim=1).to(self.features.dtype)
        targets = gather_rows(targets)
        if self.variant == "hard":
            similarities = (instances * self.features[targets]).sum(dim=1)
            order = similarities.argsort(stable=True)
            instances, targets = instances[order], targets[order]
        moved = self.features.clone()  # autograd may still hold the other
        for turn in _turns(targets)[: 1 if self.variant == "hard" else None]:
            clusters = targets[turn]
            mixed = self.momentum * moved[clusters] + (1 - self.momentum) * instances[turn]
            moved[clusters] = F.normalize(mixed, dim=1)
        self.features = moved


def _turns(targets: Tensor) -> list[Tensor]:
    """Rows of every cluster's first instance, then of the second ones, and so on: no cluster twice in a turn."""
    order = targets.argsort(stable=True)
    counts = targets.bincount()
    number = torch.arange(len(targets), device=targets.device) - (counts.cumsum(0) - counts)[targets[order]]
    return [order[number == turn] for turn in range(int(counts.max()))]
