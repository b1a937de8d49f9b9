"""Nearest neighbours by cosine, in blocks: of a target's images, and of cluster centres."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 8192
"""Rows of either side multiplied at once: 256 MiB of similarities."""


def nearest(features: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """The reference of greatest cosine for each feature; ties go to the first.

    Args:
        features: (N, D), of any float type and length; normalised and multiplied in float32.
        references: (M, D), M ≥ 1, on the same device.

    Returns:
        Cosines float32 (N,) and rows of `references` int64 (N,). A feature that is not finite has the cosine NaN.
    """
    cosines = features.new_full((len(features),), -torch.inf, dtype=torch.float32)
    rows = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    for part in _blocks(len(references)):
        directions = F.normalize(references[part].float(), dim=1)
        for block in _blocks(len(features)):
            best, place = (F.normalize(features[block].float(), dim=1) @ directions.T).max(dim=1)
            better = (best > cosines[block]) | best.isnan()
            cosines[block] = torch.where(better, best, cosines[block])
            rows[block] = torch.where(better, place + part.start, rows[block])
    return cosines, rows


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
