"""Messages and figures about the pseudo labels of an adaptation, during the training and afterwards."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rayreid.data.store.store import ImageStore
from rayreid.evaluation.curves import loss_curves
from rayreid.evaluation.image_sheets import image_sheet
from rayreid.execution.production import StageContext
from rayreid.reid.clustering import OUTLIER
from rayreid.state_files import reading, remake
from rayreid.storage.metrics_log import Journal

_CLUSTERS, _IMAGES = 6, 8
"""Most clusters of a sheet, one per line, and most images of a line."""
_SHEETS = 10
"""Most sheets of a run; a shorter run has one per epoch."""
_BLANK = np.full((2, 1, 3), 255, np.uint8)
_CURVES = ("clusters", "outliers", "cluster_size_max", "ari", "nmi", "pair_f")
_PHASES = ("seconds_extract", "seconds_neighbours", "seconds_cluster")


def watch(row: Mapping[str, float]) -> str | None:
    """Return a warning for the user if an epoch reuses the labels of an earlier one, else None."""
    if not row.get("kept_labels"):
        return None
    found = f"{row['clusters']:.0f} clusters, {row['outliers']:.0f} outliers"
    return f"epoch {round(row['epoch']) + 1}: {found} cannot be trained on; the labels of the epoch before stay"


def draw(context: StageContext, store: ImageStore, labels: Path, epochs: int) -> dict[str, float]:
    """Draw the labels' curves and some clusters of the epochs.

    Args:
        context: Context of the running stage.
        store: The images.
        labels: Folder of the labels per epoch, `NNNN.npz` from 1.
        epochs: Number of epochs of the training.

    Returns:
        The statistics of the last epoch, and the seconds of all epochs by phase.
    """
    journal = Journal(context.folder / "metrics.jsonl")
    last = journal.newest("clusters")
    rows = [row for row in journal.history() if "clusters" in row]
    names = [name for name in _CURVES if name in last]
    context.run.figure(loss_curves(rows, names, x="epoch"), "figures/labels.png")
    for epoch in np.linspace(1, epochs, min(_SHEETS, epochs)).round().astype(int):
        path = labels / f"{epoch:04d}.npz"
        with reading(path, remake(context.folder)), np.load(path) as file:
            context.run.figure(sheet(store, file["rows"], file["labels"]), f"figures/clusters/{epoch:04d}.png")
    kept = [name for name in ("clusters", "outliers", "images_used", "ari", "nmi", "pair_f") if name in last]
    return {
        **{f"final_{name}": last[name] for name in kept},
        "epochs_with_kept_labels": sum(row["kept_labels"] for row in rows),
        **{f"total_{name}": round(sum(row[name] for row in rows), 2) for name in _PHASES},
    }


def sheet(store: ImageStore, rows: np.ndarray, labels: np.ndarray) -> Figure:
    """Draw some clusters, one line of images each, from the largest to the smallest, with the true identities.

    Args:
        store: The images.
        rows: Index rows, int (N,).
        labels: Clusters of these rows, int (N,), −1 for outliers.
    """
    sizes = np.bincount(labels[labels != OUTLIER])
    order = np.argsort(-sizes, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(_CLUSTERS, len(order))).astype(int)]
    images: list[np.ndarray] = []
    titles: list[str] = []
    for cluster in shown:
        members = rows[labels == cluster]
        width = min(_IMAGES, len(members))
        line = members[np.linspace(0, len(members) - 1, width).astype(int)]
        images += [store.image(int(row)) for row in line] + [_BLANK] * (_IMAGES - width)
        titles += [f"{len(members)}: {store.pids[row]}" for row in line] + [""] * (_IMAGES - width)
    return image_sheet(images, titles, columns=_IMAGES)
