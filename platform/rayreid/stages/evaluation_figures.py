"""Figures of an evaluation: CMC curves, ranked lists of some queries, and the attention maps of a ViT."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore
from rayreid.evaluation.attention import attention_sheet
from rayreid.evaluation.retrieval import RetrievalReport, top_k
from rayreid.evaluation.retrieval_figures import cmc_curve, ranked_lists
from rayreid.execution.production import StageContext
from rayreid.files import make_folder, replacing
from rayreid.models.backbones import ViT
from rayreid.models.embedding import Embedder

FOLDER = "figures"
LISTS = 8
"""Number of queries in one figure."""
RANKS = 10
LOOKS = 6
"""Number of queries with an attention map."""


@dataclass(frozen=True)
class Rankings:
    """Query and gallery images of a store: their index rows, and their features (Q, D) and (G, D)."""

    store: ImageStore
    query: np.ndarray
    gallery: np.ndarray
    query_features: np.ndarray
    gallery_features: np.ndarray


def draw(
    context: StageContext, rankings: Rankings, report: RetrievalReport, reranked: RetrievalReport | None, weights: Path
) -> None:
    """Draw all figures into the folder `figures/` of the artifact, and log them to MLflow."""
    curves = {"model": report.cmc} | ({"re-ranked": reranked.cmc} if reranked else {})
    figures = {"cmc": cmc_curve(curves)}
    chosen = choose(report)
    figures |= {f"ranked_{name}": _lists(rankings, shown, report) for name, shown in chosen.items()}
    looked_at = rankings.query[chosen["random"][:LOOKS]]
    figures |= _attention(rankings.store, looked_at, weights)
    folder = context.folder / FOLDER
    make_folder(folder)
    for name, figure in figures.items():
        with replacing(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png")
        context.run.file(folder / f"{name}.png", FOLDER)


def choose(report: RetrievalReport) -> dict[str, np.ndarray]:
    """Return the queries to show, as positions in the query set: the best, the worst, and a fixed random sample.

    Ties among the best prefer queries with more true matches, ties among the worst those with fewer; then the first.
    """
    counted = np.flatnonzero(report.first_match > 0)
    precision, matches = report.average_precision[counted], report.matches[counted]
    random = np.random.default_rng(0).choice(len(counted), min(LISTS, len(counted)), replace=False)
    return {
        "best": counted[np.lexsort((-matches, -precision))[:LISTS]],
        "worst": counted[np.lexsort((matches, precision))[:LISTS]],
        "random": counted[np.sort(random)],
    }


def _lists(rankings: Rankings, shown: np.ndarray, report: RetrievalReport) -> Figure:
    """Draw the ranked lists of some queries."""
    store, gallery = rankings.store, rankings.gallery
    rows = rankings.query[shown]
    scores, ranked = top_k(
        rankings.query_features[shown],
        rankings.gallery_features,
        RANKS,
        store.pids[rows],
        store.pids[gallery],
        store.camids[rows],
        store.camids[gallery],
    )
    found = [gallery[places[places >= 0]] for places in ranked]
    return ranked_lists(
        [store.image(row) for row in rows],
        [[store.image(row) for row in places] for places in found],
        [(store.pids[places] == store.pids[row]).tolist() for row, places in zip(rows, found, strict=True)],
        [f"AP {100 * report.average_precision[i]:.1f} %" for i in shown],
        [values[: len(places)].tolist() for values, places in zip(scores, found, strict=True)],
    )


@torch.inference_mode()
def _attention(store: ImageStore, rows: np.ndarray, weights: Path) -> dict[str, Figure]:
    """Draw the attention maps of a ViT; return no figure for another network."""
    embed = Embedder(weights, torch.device("cpu"), "fp32")
    if not isinstance(embed.backbone, ViT):
        return {}
    images = [store.image(row) for row in rows]
    maps = embed.backbone.attention_maps(embed.transform(ImageBatch.collate(images)))
    return {"attention": attention_sheet(images, maps.numpy(), embed.backbone.patch_embed.grid_size)}
