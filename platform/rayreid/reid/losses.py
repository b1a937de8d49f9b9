"""Batch-hard triplet loss (Hermans, Beyer, Leibe: "In Defense of the Triplet Loss", arXiv 1703.07737, eq. 5)."""

import torch
import torch.nn.functional as F

SMALLEST_SQUARE = 1e-12  # as in the field's code: sqrt has no finite gradient at 0 (each point and itself)


def euclidean_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distances between all rows of `x` and all rows of `y`.

    Squares are expanded, |x|² + |y|² − 2⟨x, y⟩, and clamped to 1e-12 before the root, as the published code
    does; a point is therefore at distance 1e-6 or more from itself, and passes no gradient there.

    Args:
        x: (N, D) float.
        y: (M, D) float.

    Returns:
        (N, M), same dtype.
    """
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1)
    return torch.addmm(squares, x, y.t(), beta=1, alpha=-2).clamp(min=SMALLEST_SQUARE).sqrt()


def hardest_distances(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The farthest positive and the nearest negative of every row in the batch.

    An instance counts among its own positives, so an identity's only image has a positive at distance ~0.
    A batch of one identity has no negatives: their distance is then infinite and the loss 0.

    Args:
        features: (B, D) float.
        labels: (B,) integer identities.

    Returns:
        (hardest positive, hardest negative), each (B,).
    """
    distances = euclidean_distances(features, features)
    same = labels[:, None] == labels[None, :]
    positive = distances.masked_fill(~same, float("-inf")).max(dim=1).values
    negative = distances.masked_fill(same, float("inf")).min(dim=1).values
    return positive, negative


def triplet_loss(features: torch.Tensor, labels: torch.Tensor, margin: float | None = None) -> torch.Tensor:
    """Batch-hard triplet loss, averaged over the batch.

    With d⁺ and d⁻ the distances of the hardest positive and negative: log(1 + exp(d⁺ − d⁻)) for the soft margin
    (`margin=None`), max(0, d⁺ − d⁻ + margin) otherwise.

    Args:
        features: (B, D) raw features (not normalised); float32 or float64. Half precision is lifted to
            float32: the expanded squares cancel.
        labels: (B,) integer identities.
        margin: in the features' unit; None for the soft margin.

    Returns:
        Scalar.
    """
    with torch.autocast(features.device.type, enabled=False):
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        positive, negative = hardest_distances(features, labels)
        if margin is None:
            return -F.logsigmoid(negative - positive).mean()  # = log(1 + exp(d⁺ − d⁻)), and never overflows
        return F.relu(positive - negative + margin).mean()
