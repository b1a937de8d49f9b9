"""Cluster memory: one vector per cluster, which classifies a batch and is then updated by it.

Cluster contrast (Dai et al., arXiv 2103.11568). The vector of a cluster is updated by each of its instances in turn
("mean"), or only by the least similar one in the batch ("hard").
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayreid.errors import UserError
from rayreid.training.parallel import gather_rows

Variant = Literal["mean", "hard"]


class ClusterMemory(nn.Module):
    """The memory and its loss. It is the same on all workers if they start with the same centres.

    Attributes:
        features: (C, D), of length 1.

    Args:
        centres: (C, D) float, normalised here.
        temperature: Number by which similarities are divided.
        momentum: Share of the old vector that an update keeps, in [0, 1).
        variant: Instances that update a cluster's vector: all in turn ("mean"), or the least similar one of the batch
            ("hard").

    Raises:
        UserError: There is no cluster, or a number is out of range.
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
        """Return the cross-entropy over the similarities to all clusters ÷ temperature, averaged over this batch.

        Args:
            inputs: (B, D) features, normalised here.
            targets: (B,) int64 clusters in [0, C).

        Returns:
            Scalar. No gradient flows into the memory.
        """
        return F.cross_entropy(F.normalize(inputs, dim=1) @ self.features.t() / self.temperature, targets)

    @torch.no_grad()
    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """Update the memory with a batch: memory ← normalise(m · memory + (1 − m) · x).

        Call it once per optimizer step, after the loss, which uses the memory before the update. All workers must call
        it with the same number of rows; each uses the rows of all, in order of rank.

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
        count, width = self.features.shape
        nowhere = self.features.new_zeros(1, width)  # a further row, for instances that are not used in a turn
        moved = torch.cat([self.features, nowhere])  # a new tensor: autograd may still hold the old one
        number = _numbers(targets, count)
        for turn in range(1 if self.variant == "hard" else int(number.max()) + 1):
            mixed = self.momentum * moved[targets] + (1 - self.momentum) * instances
            moved[torch.where(number == turn, targets, count)] = F.normalize(mixed, dim=1)
        self.features = moved[:count]


def _numbers(targets: Tensor, clusters: int) -> Tensor:
    """Return the number of each instance among those of its cluster, from 0, in the order of the rows.

    Nothing here makes the host wait for a GPU.
    """
    order = targets.argsort(stable=True)
    counts = torch.zeros(clusters, dtype=torch.int64, device=targets.device).scatter_add_(
        0, targets, targets.new_ones(len(targets))
    )
    place = torch.arange(len(targets), device=targets.device)
    return torch.empty_like(targets).scatter_(0, order, place - (counts.cumsum(0) - counts)[targets[order]])
