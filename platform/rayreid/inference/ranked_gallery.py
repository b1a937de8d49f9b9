"""A gallery of features, ranked for queries. Needs no Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayreid.data.store.feature_file import FeatureTable, read_features
from rayreid.errors import UserError
from rayreid.evaluation.retrieval import top_k
from rayreid.inference.named_inputs import ModelFile, place


@dataclass(frozen=True)
class Found:
    """Results of one query: gallery keys by rank, with similarity, identity and camera (−1: not known)."""

    query: str
    keys: list[str]
    scores: list[float]
    pids: list[int]
    camids: list[int]


def rank_gallery(
    queries: Sequence[str], features: np.ndarray, table: FeatureTable, k: int
) -> tuple[list[Found], list[list[int]]]:
    """Rank a gallery for queries by cosine similarity.

    Args:
        queries: Names of the queries.
        features: Their features, (Q, D).
        table: The gallery.
        k: Number of results per query.

    Returns:
        The results in the order of the queries, and their rows in the table.

    Raises:
        UserError: As for `top_k`.
    """
    scores, rows = top_k(features, table.features, min(k, len(table)))
    found = [
        Found(
            query,
            table.keys[ranked].tolist(),
            values.tolist(),
            table.pids[ranked].tolist(),
            table.camids[ranked].tolist(),
        )
        for query, values, ranked in zip(queries, scores, rows, strict=True)
    ]
    return found, rows.tolist()


def read_gallery(gallery: str, model: ModelFile, split: str | None) -> FeatureTable:
    """Return the features of a gallery that `predict` wrote, of one split or of all images.

    Raises:
        UserError: The file is of another kind, holds features of another model, or has no image of the split.
    """
    table = read_features(place(gallery))
    if table.header["weights"] != model.checksum:
        raise UserError(
            f"{gallery} holds features of other weights ({table.header['model']}) than {model.weights}: "
            "predict it again, or name that model"
        )
    if split is not None:
        table = table.part(table.splits == split)
    refuse_empty(gallery, len(table), split)
    return table


def refuse_empty(gallery: str, images: int, split: str | None) -> None:
    """Raise a UserError if a gallery has no image, of a split or at all."""
    if not images:
        raise UserError(f"the gallery {gallery} is empty: no image" + (f" of split {split!r}" if split else ""))
