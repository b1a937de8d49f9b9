"""BNNeck (Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification", §3.6).

The triplet loss needs distances in a free space, cross-entropy a hypersphere around the origin. A batch norm without a
trained shift separates the two. The classifier has no bias for the same reason.
"""

import torch
from torch import Tensor, nn

from rayreid.models.norms import SyncedBatchNorm
from rayreid.training.compilation import compilable

CLASSIFIER_STD = 0.001


class BNNeck(SyncedBatchNorm):
    """Batch norm over (B, D) features whose shift stays at zero.

    The scale starts at one. `bias` exists, at zero and frozen, because published checkpoints contain it. Statistics
    cover the batches of all workers, unless `models.norms.set_synchronised` changes that.
    """

    def __init__(self, features: int):
        super().__init__(features)
        self.bias.requires_grad_(False)

    @torch.no_grad()
    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return (scale, shift), each (D,), of the equivalent x · scale + shift in eval mode."""
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


def identity_classifier(features: int, identities: int) -> nn.Linear:
    """Return a linear layer (B, features) → (B, identities) without bias, initialised from N(0, 0.001²)."""
    classifier = nn.Linear(features, identities, bias=False)
    with torch.no_grad():
        classifier.weight.normal_(std=CLASSIFIER_STD)
    return classifier


@compilable(breaks=True)
def applied(head: nn.Module, features: Tensor) -> Tensor:
    """Return what a neck or a classifier makes of features (B, D); synchronised batch norm waits for other workers."""
    out: Tensor = head(features)
    return out
