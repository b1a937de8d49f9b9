"""How far the features of a model spread: whether they differ at all, and in how many directions."""

import torch
import torch.nn.functional as F
from torch import Tensor

ALIKE = 0.99999
"""Length of the mean of unit features above which rounding decides much of a ranking by them: cosines then differ by
less than 2e-5, and float32 rounds a sum of some hundred products by up to 1e-6."""


def mean_length(features: Tensor) -> float:
    """Return the length of the mean of features (N, D) scaled to length 1: 0 if they cancel out, 1 if all are alike."""
    return float(torch.linalg.vector_norm(F.normalize(features.float()).mean(dim=0)))


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of features (N, D), between 1 and min(N, D).

    It is RankMe (Garrido et al., arXiv 2210.02885, eq. 1–2): the exponential of the entropy of the singular values,
    divided by their sum. The features are neither centred nor normalised.
    """
    rows = features if len(features) <= features.shape[1] else features.t()
    products = (rows.float() @ rows.float().t()).double().cpu()
    singular = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    shares = singular / singular.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(shares).sum().exp())
