"""Stage *evaluate*: ReID model + query and gallery of a target → mAP, CMC, mINP, per-query results and figures."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rayreid.config import Evaluate, Rerank
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.metrics import RERANKED
from rayreid.evaluation.protocol import check_findable
from rayreid.evaluation.rerank import Reranking
from rayreid.evaluation.retrieval import RetrievalReport, evaluate_retrieval
from rayreid.evaluation.spread import ALIKE, effective_rank, mean_length
from rayreid.evaluation.stored import CURVE, QUERIES
from rayreid.execution.feature_extraction import extract
from rayreid.execution.production import StageContext, identity
from rayreid.files import replacing
from rayreid.models.neck import load_neck
from rayreid.models.weights import weights_of
from rayreid.parquet import write_table
from rayreid.stages.evaluation_figures import Rankings, draw
from rayreid.storage.artifacts import Artifact

VERSION = 1


def plan(target: Artifact, model: Artifact, config: Evaluate) -> Artifact:
    """Return the artifact with the retrieval metrics of a model on a target."""
    inputs = {"target": target, "model": model}
    return Artifact(target.root, "evaluate", VERSION, identity(evaluate=config), inputs, partial(_evaluate, config))


def check_feature(metrics: Artifact) -> None:
    """Refuse the feature after the BNNeck of a model without one, as far as that is known before the model is trained.

    Raises:
        UserError: The model is a backbone without fine-tuning, or complete weights without a neck.
    """
    model = metrics.inputs["model"]
    if metrics.fields["evaluate"].get("feature") != "after":
        return
    if model.stage == "pretrain":
        raise UserError("evaluate.feature is after, but a backbone without fine-tuning has no BNNeck; set it to before")
    if model.complete:
        load_neck(weights_of(model.path), after=True)


def _evaluate(config: Evaluate, context: StageContext) -> dict[str, Any]:
    store = ImageStore(context.input("target"))
    query, gallery = store.rows_of("query"), store.rows_of("gallery")
    for name, rows in (("query", query), ("gallery", gallery)):
        if not len(rows):
            raise UserError(f"{store.directory}: the split {name!r} is empty; evaluation needs query and gallery")
    labels = (store.pids[query], store.pids[gallery], store.camids[query], store.camids[gallery])
    check_findable(*labels)  # report it now, not after the extraction
    copies = _copies(store, query, gallery)
    if copies:
        context.screen.say(
            f"    [yellow]{copies} queries have a byte-identical copy in the gallery, which the protocol counts[/]"
        )
    context.run.dataset("target", store.fingerprint, str(store.directory), store.manifest["counts"], "evaluate")
    weights = weights_of(context.input("model"))
    after = config.feature == "after"
    load_neck(weights, after)  # a missing neck is reported here, not by a worker
    both = np.concatenate([query, gallery])
    features, broken = extract(store, both, weights, config.batch_size, context.screen, after=after)
    if broken:
        row, reason = next(iter(broken.items()))
        raise UserError(f"{store.directory}: image {store.keys[row]!r} cannot be decoded ({reason})")
    found = torch.from_numpy(features)
    spread = {"mean_length": mean_length(found), "effective_rank": effective_rank(found)}
    warnings = _warned(spread["mean_length"], context)
    sides = (features[: len(query)], features[len(query) :])
    report = evaluate_retrieval(*sides, *labels, max_rank=config.max_rank)
    reranked = _reranked(config.rerank, sides, labels, config.max_rank, context) if config.rerank else None
    _write_queries(context.folder / QUERIES, store, query, report, reranked)
    _write_curve(context.folder / CURVE, report.cmc)
    if reranked:
        _write_curve(context.folder / f"cmc{RERANKED}.npy", reranked.cmc)
    draw(context, Rankings(store, query, gallery, *sides), report, reranked, weights)
    context.run.file(context.folder / QUERIES)
    return {
        **report.metrics(),
        **({f"{name}{RERANKED}": value for name, value in reranked.metrics().items()} if reranked else {}),
        "queries": report.queries,
        "skipped_queries": report.skipped,
        "junk_queries": report.junk_queries,
        "gallery": report.gallery,
        "junk_gallery": report.junk_gallery,
        "copies_in_gallery": copies,
        **spread,
        **({"warnings": warnings} if warnings else {}),
    }


def _warned(length: float, context: StageContext) -> list[str]:
    """Warn of features that are all alike, and return the warnings."""
    if length < ALIKE:
        return []
    warning = (
        f"the features of all images are nearly equal (the mean of the unit features has length {length:.6f}), so that "
        "rounding decides much of the ranking: the training of this model has collapsed"
    )
    context.screen.say(f"    [yellow]warning:[/] {warning}")
    context.run.tags({"warning": warning})
    return [warning]


def _reranked(
    config: Rerank,
    sides: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    max_rank: int,
    context: StageContext,
) -> RetrievalReport:
    context.screen.say(f"    re-ranking with k1 {config.k1}, k2 {config.k2}, λ {config.weight:g}")
    scores = Reranking(config.k1, config.k2, config.weight)
    return evaluate_retrieval(*sides, *labels, max_rank=max_rank, scores=scores)


def _copies(store: ImageStore, query: np.ndarray, gallery: np.ndarray) -> int:
    """Count queries with a byte-identical gallery image that is neither junk nor of the same identity and camera.

    A copy has similarity 1 with its query: as a true match it raises the score, under another identity it lowers it.
    """
    of: dict[bytes, list[int]] = {}
    for row in gallery[store.pids[gallery] >= 0].tolist():
        of.setdefault(_digest(store, row), []).append(row)
    count = 0
    for row in query[store.pids[query] >= 0].tolist():
        pid, camid = store.pids[row], store.camids[row]
        copies = of.get(_digest(store, row), ())
        count += any(store.pids[copy] != pid or camid < 0 or store.camids[copy] != camid for copy in copies)
    return count


def _digest(store: ImageStore, row: int) -> bytes:
    return hashlib.blake2b(store.encoded(row), digest_size=16).digest()


def _write_curve(path: Path, values: np.ndarray) -> None:
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, values)


def _write_queries(
    path: Path, store: ImageStore, query: np.ndarray, report: RetrievalReport, reranked: RetrievalReport | None
) -> None:
    """Write per-query results, so that two models can be compared query by query."""
    columns = {"key": pa.array(store.keys[query].tolist(), pa.string()), **_columns(report)}
    if reranked:
        columns |= {f"{name}{RERANKED}": values for name, values in _columns(reranked).items()}
    write_table(path, pa.table(columns))


def _columns(report: RetrievalReport) -> Mapping[str, pa.Array]:
    return {"average_precision": pa.array(report.average_precision), "first_match": pa.array(report.first_match)}
