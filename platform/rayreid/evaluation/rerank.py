"""k-reciprocal re-ranking, streamed over the queries.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017, arXiv 1701.08398), eq. 12: (1
− λ) · Jaccard distance + λ · squared distance, the latter divided by the query's largest one. Queries and gallery are
encoded together; only a block of the dense distances exists at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayreid.errors import UserError
from rayreid.evaluation.ranking import TILE, score_blocks
from rayreid.neighbours.k_reciprocal import BELOW_ONE, encode, half_list, jaccard_distances
from rayreid.neighbours.knn import nearest

SMALLEST_REACH = 1e-6  # smallest divisor of squared distances, for points that are all equal


@dataclass(frozen=True)
class Reranking:
    """Re-ranked scores that replace cosine similarities: `evaluate_retrieval(…, scores=Reranking())`.

    Attributes:
        k1: Number of neighbours of a point, not counting the point itself.
        k2: Number of rows that query expansion averages, including the point's own.
        weight: λ, the share of the squared distance, in [0, 1].

    Raises:
        UserError: A number is out of range.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        if not (1 <= self.k2 <= self.k1 and 0 <= self.weight <= 1):
            raise UserError(
                f"re-ranking with k1 {self.k1}, k2 {self.k2}, lambda {self.weight:g}: "
                "need 1 <= k2 <= k1 and lambda from 0 to 1"
            )

    def __call__(self, query: Tensor, gallery: Tensor, block: int = TILE) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first query, −distance (b, G) float32, writable, valid until the next) block by block.

        Args:
            query: (Q, D) float32, of length 1, without junk.
            gallery: (G, D) float32, of length 1, on the same device, without junk.
            block: Number of queries whose distances are in memory at once, rounded up to whole tiles.
        """
        neighbours = nearest(torch.cat([query, gallery]), self.k1 + 1, farthest=True)
        assert neighbours.least is not None
        reach = np.maximum(2 - 2 * neighbours.least, SMALLEST_REACH)
        encoding = encode(neighbours, self.k1 + 1, half_list(self.k1), self.k2, 1 / reach)
        queries, by_column = encoding[: len(query)], encoding[len(query) :].tocsc()
        for start, scores in score_blocks(query, gallery, block):
            rows = slice(start, start + len(scores))
            part = (2 * self.weight / reach[rows, None]).astype(np.float32)
            scores *= part
            scores -= part + np.float32(1 - self.weight)  # −λ·d − (1 − λ), the score if no entry is shared
            shared = jaccard_distances(queries[rows], by_column, BELOW_ONE, most=len(gallery)).tocoo()
            scores[shared.row, shared.col] += np.float32(1 - self.weight) * (1 - shared.data)
            yield start, scores
