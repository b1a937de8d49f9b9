"""How diverse images are: the effective rank of their features, and their distribution over clusters."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayreid.selection.features import Features
from rayreid.selection.steps import Steps, blocks, by_step


def effective_rank(covariance: npt.NDArray[np.float64]) -> float:
    """Return the number of directions in which features vary (Roy and Vetterli, 2007).

    It is exp of the entropy of the normalised eigenvalues: D if the variance is equal in all D directions, 1 if there
    is variance in only one.

    Args:
        covariance: Covariance of the features (D, D).

    Returns:
        A number in [1, D]; NaN if nothing varies.
    """
    variances = np.linalg.eigvalsh(covariance).clip(0)
    total = variances.sum()
    if not total > 1e-12:
        return math.nan
    return math.exp(_entropy(variances / total))


def normalised_entropy(counts: npt.NDArray[np.integer]) -> float:
    """Return the entropy of a distribution over K groups ÷ log K: 1 if all groups are equally large, 0 for only one.

    Args:
        counts: Size of each group (K,).

    Returns:
        A number in [0, 1]; NaN without members, or if there is only one group.
    """
    total = counts.sum()
    if len(counts) < 2 or not total:
        return math.nan
    return _entropy(counts / total) / math.log(len(counts))


def moments(
    pool: Features, steps: Steps, cuts: int, device: torch.device
) -> tuple[npt.NDArray[np.int64], list[list[npt.NDArray[np.float64]]]]:
    """Return the number of images of each cut of each selection (S, F), and the covariance of their features (D, D).

    Products are accumulated in float64, of blocks in float32.
    """
    counts = np.zeros((len(steps), cuts), np.int64)
    sums: dict[tuple[int, int], Tensor] = {}
    products: dict[tuple[int, int], Tensor] = {}
    width = 0
    for rows, units in blocks(pool, device):
        width = units.shape[1]
        for one, number, places in by_step(steps[:, rows], cuts):
            mine = units[torch.from_numpy(places).to(device)]
            place = (one, number)
            counts[place] += len(places)
            sums[place] = sums.get(place, 0) + mine.sum(dim=0).double()
            products[place] = products.get(place, 0) + (mine.T @ mine).double()
    counts = counts.cumsum(axis=1)
    covariances: list[list[npt.NDArray[np.float64]]] = []
    for one in range(len(steps)):
        total, product = np.zeros(width), np.zeros((width, width))
        covariances.append([])
        for number in range(cuts):
            if (one, number) in sums:
                total = total + sums[one, number].cpu().numpy()
                product = product + products[one, number].cpu().numpy()
            mean = total / max(1, counts[one, number])
            covariances[one].append(product / max(1, counts[one, number]) - np.outer(mean, mean))
    return counts, covariances


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    """Return the entropy of shares that sum to 1, in nats."""
    present = shares[shares > 0]
    return float(max(0.0, -(present * np.log(present)).sum()))
