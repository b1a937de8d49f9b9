"""What is told of an adaptation while it runs and afterwards: its pseudo labels, and what it is worth so far."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from rayreid.data.reid_transforms import ReIDTest
from rayreid.data.store import ImageStore
from rayreid.evaluation.figures import image_sheet, loss_curves
from rayreid.evaluation.probe import extract
from rayreid.evaluation.retrieval import evaluate_retrieval
from rayreid.journal import Journal
from rayreid.reid.clustering import OUTLIER
from rayreid.stages.production import Work
from rayreid.training import parallel
from rayreid.training.loop import resolve_precision

_CLUSTERS, _IMAGES = 6, 8
"""Of a sheet: one line per cluster."""
_CURVES = ("clusters", "outliers", "cluster_size_max", "ari", "nmi", "pair_f")
_PHASES = ("seconds_extract", "seconds_neighbours", "seconds_cluster")


@dataclass(frozen=True)
class Look:
    """Looks at query and gallery in passing, on every worker together; travels to them pickled.

    The published code does so, too. Nothing hangs on it: no weights are chosen, the last ones are kept.

    Attributes:
        store: the target's image store.
        transform: of the images.
        every: epochs between two looks, the last epoch is then always looked at; 0: none.
        epochs: length of the training.
        precision: of the forward pass.
    """

    store: Path
    transform: ReIDTest
    every: int
    epochs: int
    precision: str

    def __call__(self, method: Any, device: torch.device, threads: int) -> Callable[[int], dict[str, float]]:
        """(epochs done) → `eval_mAP` and `eval_rank1`, on worker 0; or nothing where no look is due."""
        store = ImageStore(self.store)
        query, gallery = store.rows_of("query"), store.rows_of("gallery")
        rows, n = np.concatenate([query, gallery]), len(query)
        precision = resolve_precision(self.precision, device)

        def look(epochs: int) -> dict[str, float]:
            if not self.every or (epochs % self.every and epochs != self.epochs):
                return {}
            features = extract(method, store, rows, self.transform, device, precision, threads)
            if parallel.rank():
                return {}
            pids, camids = store.pids[rows], store.camids[rows]
            report = evaluate_retrieval(
                features[:n], features[n:], pids[:n], pids[n:], camids[:n], camids[n:], max_rank=1
            )
            return {"eval_mAP": report.mAP, "eval_rank1": report.rank(1)}

        return look


def watch(row: Mapping[str, float]) -> str | None:
    """A sentence for the user where an epoch goes on with the labels of an earlier one."""
    if not row.get("kept_labels"):
        return None
    found = f"{row['clusters']:.0f} clusters, {row['outliers']:.0f} outliers"
    return f"epoch {round(row['epoch']) + 1}: {found} cannot be trained on; the labels of the epoch before stay"


def draw(work: Work, store: ImageStore, labels: Path) -> dict[str, float]:
    """Draw the labels' curves and some of the last clusters; what was found last, and all phases' seconds, as facts."""
    rows = [row for row in Journal(work.folder / "metrics.jsonl").history() if "clusters" in row]
    names = [name for name in _CURVES if name in rows[-1]]
    work.run.figure(loss_curves(rows, names, x="epoch"), "figures/labels.png")
    with np.load(labels) as file:
        work.run.figure(sheet(store, file["rows"], file["labels"]), "figures/clusters.png")
    kept = [name for name in ("clusters", "outliers", "images_used", "ari", "nmi", "pair_f") if name in rows[-1]]
    return {
        **{f"final_{name}": rows[-1][name] for name in kept},
        "epochs_with_kept_labels": sum(row["kept_labels"] for row in rows),
        **{f"total_{name}": round(sum(row[name] for row in rows), 2) for name in _PHASES},
    }


def sheet(store: ImageStore, rows: np.ndarray, labels: np.ndarray) -> Figure:
    """Some clusters, a line of images each, from the largest to the smallest; every image with its true identity.

    Args:
        store: the images.
        rows: index rows, int (N,).
        labels: clusters of these, int (N,), −1 for outliers.
    """
    sizes = np.bincount(labels[labels != OUTLIER])
    order = np.argsort(-sizes, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(_CLUSTERS, len(order))).astype(int)]
    width = min(_IMAGES, int(sizes[shown].min()))
    members = [rows[labels == cluster] for cluster in shown]
    chosen = [group[np.linspace(0, len(group) - 1, width).astype(int)] for group in members]
    titles = [f"{len(group)}: {store.pids[row]}" for group, line in zip(members, chosen, strict=True) for row in line]
    images = [store.image(int(row)) for line in chosen for row in line]
    return image_sheet(images, titles, columns=width)
