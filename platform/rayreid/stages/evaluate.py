"""Stage *evaluate*: ReID model + target's query and gallery → mAP, CMC, mINP and ranked lists."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure

from rayreid.artifacts import Artifact, write_atomically
from rayreid.config import Evaluate
from rayreid.data.batch import ImageBatch
from rayreid.data.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.figures import cmc_curve, ranked_lists
from rayreid.evaluation.retrieval import RetrievalReport, evaluate_retrieval, top_k
from rayreid.models.embedding import Embedder
from rayreid.stages.inference import stream, weights_of
from rayreid.stages.production import Work, identity

VERSION = 1
_LISTS = 8


def plan(target: Artifact, model: Artifact, config: Evaluate) -> Artifact:
    """The retrieval metrics of a model on a target."""
    inputs = {"target": target, "model": model}
    return Artifact(target.root, "evaluate", VERSION, identity(evaluate=config), inputs, partial(_evaluate, config))


class _Head:
    """Global features, as numbers."""

    def __init__(self, path: Path, device: torch.device):
        # bf16 rounds enough to swap close ranks; published numbers are of float32.
        self.embed = Embedder(path, device, "fp32")

    def __call__(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        return self.embed(images).cpu().numpy()


def extract(store: ImageStore, rows: np.ndarray, weights: Path, config: Evaluate, work: Work) -> np.ndarray:
    """Features of some images of a store, float32 (n, D), in the order of `rows`.

    Raises:
        UserError: an image cannot be decoded.
    """
    order = np.argsort(rows)
    ascending = rows[order]
    features: np.ndarray | None = None
    with work.screen.bar("features", len(rows)) as bar:
        done = 0
        for part, values, broken in stream(store.directory, [ascending], partial(_Head, weights), config.batch_size):
            if broken:
                row, reason = next(iter(broken.items()))
                raise UserError(f"{store.directory}: image {store.keys[row]!r} cannot be decoded ({reason})")
            if features is None:
                features = np.empty((len(rows), values.shape[1]), np.float32)
            features[order[np.searchsorted(ascending, part)]] = values
            done += len(part)
            bar.to(done)
    assert features is not None
    return features


def _evaluate(config: Evaluate, work: Work) -> dict[str, Any]:
    store = ImageStore(work.input("target"))
    query, gallery = store.rows_of("query"), store.rows_of("gallery")
    for name, rows in (("query", query), ("gallery", gallery)):
        if not len(rows):
            raise UserError(f"{store.directory}: the split {name!r} is empty; evaluation needs query and gallery")
    work.run.dataset("target", store.fingerprint, str(store.directory), store.manifest["counts"], "evaluate")
    weights = weights_of(work.input("model"))
    features = extract(store, np.concatenate([query, gallery]), weights, config, work)
    query_features, gallery_features = features[: len(query)], features[len(query) :]
    report = evaluate_retrieval(
        query_features,
        gallery_features,
        store.pids[query],
        store.pids[gallery],
        store.camids[query],
        store.camids[gallery],
        max_rank=config.max_rank,
    )
    _write_queries(work.folder / "queries.parquet", store, query, report)
    np.save(work.folder / "cmc.npy", report.cmc)
    work.run.figure(cmc_curve({"model": report.cmc}), "figures/cmc.png")
    work.run.figure(_lists(store, query, gallery, query_features, gallery_features), "figures/ranked_lists.png")
    work.run.file(work.folder / "queries.parquet")
    return {
        **report.metrics(),
        "queries": report.queries,
        "skipped_queries": report.skipped,
        "gallery": report.gallery,
        "junk_gallery": report.junk_gallery,
    }


def _write_queries(path: Path, store: ImageStore, query: np.ndarray, report: RetrievalReport) -> None:
    """Per-query results, so that two models can be compared query by query."""
    table = pa.table(
        {
            "key": pa.array(store.keys[query].tolist(), pa.string()),
            "average_precision": pa.array(report.average_precision),
            "first_match": pa.array(report.first_match),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def _lists(
    store: ImageStore,
    query: np.ndarray,
    gallery: np.ndarray,
    query_features: np.ndarray,
    gallery_features: np.ndarray,
) -> Figure:
    """Ranked lists of some queries, evenly spread over the query set."""
    shown = np.linspace(0, len(query) - 1, min(_LISTS, len(query))).astype(int)
    _, ranked = top_k(
        query_features[shown],
        gallery_features,
        10,
        store.pids[query[shown]],
        store.pids[gallery],
        store.camids[query[shown]],
        store.camids[gallery],
    )
    lists = [[store.image(gallery[place]) for place in places if place >= 0] for places in ranked]
    right = [
        [bool(store.pids[gallery[place]] == store.pids[query[i]]) for place in places if place >= 0]
        for i, places in zip(shown, ranked, strict=True)
    ]
    return ranked_lists([store.image(query[i]) for i in shown], lists, right)
