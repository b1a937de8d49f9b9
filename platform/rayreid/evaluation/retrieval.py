"""Retrieval metrics by the Market-1501 protocol: mAP, CMC and mINP, streamed over the queries.

The protocol (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015, §3.3): junk (pid −1) is removed
from query and gallery; for each query, the gallery images of the same identity *and* the same camera are skipped; a
query without a remaining true match is not counted. mINP is from Ye et al., arXiv 2001.04193, eq. 17.

Equal scores rank in the gallery's order. `ranking` and `ranks_cpu` compute the ranks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from rayreid.errors import UserError
from rayreid.evaluation.ranking import TILE, Array, ImageSet, Relatives, check_widths, score_blocks
from rayreid.evaluation.ranks_cpu import judge
from rayreid.neighbours.kernels import in_blocks, side_by_side, thread_pool

Scores = Callable[[torch.Tensor, torch.Tensor, int], Iterator[tuple[int, np.ndarray]]]
"""Function from unit query features, gallery features and a number of queries to blocks (first query, scores (b,
G)); higher scores are better."""

QUERIES = 16  # number of queries that a thread scores at a time


@dataclass(frozen=True)
class RetrievalReport:
    """The result of an evaluation. Q is the number of queries given, in their order.

    Attributes:
        mAP: Mean average precision over the counted queries, in [0, 1].
        cmc: (max_rank,) float64; `cmc[k − 1]` is the share of counted queries with a true match in the first k.
        mINP: Mean over queries of (number of true matches) / (rank of the last one), in [0, 1].
        average_precision: (Q,) float64, NaN for queries that are not counted.
        inverse_negative_penalty: (Q,) float64, NaN for queries that are not counted.
        first_match: (Q,) int64, rank of the first true match from 1, 0 for queries that are not counted.
        matches: (Q,) int64, number of true matches.
        queries: Number of counted queries.
        skipped: Number of queries without a true match.
        junk_queries: Number of queries with pid −1.
        gallery: Number of gallery images ranked.
        junk_gallery: Number of gallery images with pid −1.
    """

    mAP: float  # noqa: N815 (the field's spelling)
    cmc: np.ndarray
    mINP: float  # noqa: N815
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray
    first_match: np.ndarray
    matches: np.ndarray
    queries: int
    skipped: int
    junk_queries: int
    gallery: int
    junk_gallery: int

    def rank(self, k: int) -> float:
        """Return the share of counted queries with a true match among the first `k`, in [0, 1]; any k ≥ 1."""
        return float((self.first_match[self.first_match > 0] <= k).mean())

    def metrics(self) -> dict[str, float]:
        """Return the numbers by which runs are compared, in [0, 1]."""
        ranks = {f"rank{k}": self.rank(k) for k in (1, 5, 10)}
        return {"mAP": self.mAP, **ranks, "mINP": self.mINP}


@torch.inference_mode()
def evaluate_retrieval(
    query_features: Array,
    gallery_features: Array,
    query_pids: Array,
    gallery_pids: Array,
    query_camids: Array,
    gallery_camids: Array,
    max_rank: int = 50,
    block: int = TILE,
    scores: Scores = score_blocks,
) -> RetrievalReport:
    """Rank the gallery for every query by cosine similarity, and return the scores of the rankings.

    Args:
        query_features: (Q, D) float; normalised here. The evaluation runs in float32 on their device.
        gallery_features: (G, D) float.
        query_pids: (Q,) int, −1 for junk.
        gallery_pids: (G,) int, −1 for junk.
        query_camids: (Q,) int, −1 for unknown, which equals no camera.
        gallery_camids: (G,) int, −1 for unknown.
        max_rank: Length of the CMC curve.
        block: Number of queries whose similarities are in memory at once, rounded up to whole tiles. It limits the
            memory and does not change the result.
        scores: Scores by which the gallery is ranked: cosine similarity, or `rerank.Reranking(…)`.

    Raises:
        UserError: Features are not finite, lengths or widths differ, there is nothing to rank, or no query has a true
            match.
    """
    query = ImageSet("query", query_features, query_pids, query_camids)
    gallery = ImageSet("gallery", gallery_features, gallery_pids, gallery_camids)
    check_widths(query, gallery)
    total, junk_queries, junk_gallery = len(query), int(query.junk.sum()), int(gallery.junk.sum())
    if junk_gallery == len(gallery):
        raise UserError(f"the gallery holds nothing to rank: all its {len(gallery)} images are junk (pid -1)")
    counted = np.flatnonzero(~query.junk)
    query, gallery = query.without_junk(), gallery.without_junk()

    relatives = Relatives(query, gallery)
    labels = (relatives.rows, relatives.spans, relatives.seen, relatives.cameras)
    judged = _Judged(len(query))
    with thread_pool() as pool:
        for start, part in scores(query.features, gallery.features, block):
            work = partial(judge, part, start, *labels, *judged.columns)
            side_by_side(pool, in_blocks(work, len(part), QUERIES))
    return judged.report(counted, total, max_rank, junk_queries, len(gallery), junk_gallery)


@torch.inference_mode()
def top_k(
    query_features: Array,
    gallery_features: Array,
    k: int,
    query_pids: Array | None = None,
    gallery_pids: Array | None = None,
    query_camids: Array | None = None,
    gallery_camids: Array | None = None,
    block: int = TILE,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best gallery images of every query, in the order in which `evaluate_retrieval` ranks them.

    If pids and camids are given, junk and images of the same identity and camera are skipped as in the protocol;
    otherwise the whole gallery is ranked.

    Returns:
        (scores, rows): (Q, k) float32 cosine similarities and int64 rows of the gallery; −inf and −1 where fewer than k
        images are left.

    Raises:
        UserError: The same errors as in `evaluate_retrieval`, or only some of the four labels are given.
    """
    labels = (query_pids, gallery_pids, query_camids, gallery_camids)
    if any(label is None for label in labels) != all(label is None for label in labels):
        raise UserError("top_k takes all of query_pids, gallery_pids, query_camids, gallery_camids, or none")
    query = ImageSet("query", query_features, query_pids, query_camids)
    gallery = ImageSet("gallery", gallery_features, gallery_pids, gallery_camids)
    check_widths(query, gallery)
    relatives = Relatives(query, gallery) if query_pids is not None else None

    best_scores = np.full((len(query), k), -np.inf, np.float32)
    best_rows = np.full((len(query), k), -1, np.int64)
    for start, scores in score_blocks(query.features, gallery.features, block):
        for i, row in enumerate(scores, start):
            if relatives is not None:
                row[relatives.passed_over(i)] = -np.inf
                row[gallery.junk] = -np.inf
            kth = np.partition(row, -k)[-k] if k < len(row) else -np.inf
            near = np.flatnonzero((row >= kth) & (row > -np.inf))
            near = near[np.argsort(-row[near], kind="stable")[:k]]
            best_rows[i, : len(near)] = near
            best_scores[i, : len(near)] = row[near]
    return best_scores, best_rows


class _Judged:
    """The results per query without junk: average precision, inverse negative penalty, first match's rank, matches."""

    def __init__(self, queries: int):
        self.columns = (
            np.full(queries, np.nan),
            np.full(queries, np.nan),
            np.zeros(queries, np.int64),
            np.zeros(queries, np.int64),
        )

    def report(
        self, counted: np.ndarray, total: int, max_rank: int, junk_queries: int, gallery: int, junk_gallery: int
    ) -> RetrievalReport:
        """Return the means, and the columns spread over all `total` queries; `counted` are the scored rows."""
        found = self.columns[-1] > 0
        if not found.any():
            raise UserError(
                f"none of the {total} queries has a true match in the gallery (same pid seen by another camera):"
                " check that query and gallery come from the same dataset and that camera ids are set"
            )
        precision, penalty = np.full(total, np.nan), np.full(total, np.nan)
        first, matches = np.zeros(total, np.int64), np.zeros(total, np.int64)
        for spread, column in zip((precision, penalty, first, matches), self.columns, strict=True):
            spread[counted] = column
        below = np.searchsorted(np.sort(self.columns[2][found]), np.arange(1, max_rank + 1), side="right")
        queries = int(found.sum())
        return RetrievalReport(
            mAP=float(self.columns[0][found].mean()),
            cmc=below / queries,
            mINP=float(self.columns[1][found].mean()),
            average_precision=precision,
            inverse_negative_penalty=penalty,
            first_match=first,
            matches=matches,
            queries=queries,
            skipped=len(counted) - queries,
            junk_queries=junk_queries,
            gallery=gallery,
            junk_gallery=junk_gallery,
        )
