"""Batch-hard triplet loss (Hermans, Beyer, Leibe: "In Defense of the Triplet Loss", arXiv 1703.07737, eq. 5)."""

import torch
import torch.nn.functional as F

# as in the field's code, because sqrt has no finite gradient at 0 (the distance of a point to itself)
SMALLEST_SQUARE = 1e-12


def euclidean_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the distances between all rows of `x` and all rows of `y`.

    Squares are expanded, |x|² + |y|² − 2⟨x, y⟩, and clamped to 1e-12 before the root, as in the published code. A point
    is therefore at distance 1e-6 or more from itself, and passes no gradient there.

    Args:
        x: (N, D) float.
        y: (M, D) float.

    Returns:
        (N, M), same dtype.
    """
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1)
    return torch.addmm(squares, x, y.t(), beta=1, alpha=-2).clamp(min=SMALLEST_SQUARE).sqrt()


def hardest_distances(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distances of the farthest positive and the nearest negative of every row in the batch.

    An instance counts as one of its own positives, so an identity's only image has a positive at distance ~0. A batch
    of one identity has no negatives: their distance is then infinite and the loss 0.

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


def triplet_loss(
    features: torch.Tensor, labels: torch.Tensor, margin: float | None = None, normalise: bool = False
) -> torch.Tensor:
    """Return the batch-hard triplet loss, averaged over the batch.

    With d⁺ and d⁻ the distances of the hardest positive and negative, it is log(1 + exp(d⁺ − d⁻)) for the soft margin
    (`margin=None`), and max(0, d⁺ − d⁻ + margin) otherwise.

    Args:
        features: (B, D) raw features; float32 or float64. Half precision is converted to float32, because the expanded
            squares cancel.
        labels: (B,) integer identities.
        margin: Margin in the unit of the distances; None for the soft margin.
        normalise: Whether to scale the features to length 1 before, as they are compared in retrieval. Distances of raw
            features shrink without limit if all features become alike.

    Returns:
        Scalar.
    """
    with torch.autocast(features.device.type, enabled=False):
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        if normalise:
            features = F.normalize(features)
        positive, negative = hardest_distances(features, labels)
        if margin is None:
            return -F.logsigmoid(negative - positive).mean()  # = log(1 + exp(d⁺ − d⁻)), and never overflows
        return F.relu(positive - negative + margin).mean()
