"""Validation on query and gallery during a training, without a second loader and with no effect on the training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rayreid.data.augment.reid_transforms import ReIDTest
from rayreid.data.store.store import ImageStore
from rayreid.evaluation.probe import extract
from rayreid.evaluation.retrieval import evaluate_retrieval
from rayreid.execution import periodic_metrics
from rayreid.files import sync_folder
from rayreid.models.weights import read_header
from rayreid.training import parallel
from rayreid.training.loop import WantedPrecision, resolve_precision


@dataclass(frozen=True)
class Best:
    """Keeps the weights of the first epoch with the highest mAP; sent to the workers by pickling.

    The best mAP so far is stored in the file itself, so that a resumed training also knows it.

    Attributes:
        path: Path of the weights file.
        save: Function (path, method, facts for the header) that writes the file.
    """

    path: Path
    save: Callable[..., None]

    def __call__(self, method: nn.Module, epochs: int, seen: dict[str, float]) -> None:
        """Keep the method's weights after `epochs` epochs if their mAP in `seen` is higher than the best so far."""
        if not self.path.exists() or read_header(self.path)["eval_mAP"] < seen["eval_mAP"]:
            self.save(self.path, method, epochs=epochs, **seen)
            # If a loss of power took this name but not the checkpoint that follows, the epoch would not be seen again.
            sync_folder(self.path.parent)


@dataclass(frozen=True)
class Look:
    """Validation on query and gallery between epochs, run by all workers together; sent to them by pickling.

    The published code also does this. The result is always the last weights, whatever the validation finds.

    Attributes:
        store: Path of the target's image store.
        transform: Transform of the images.
        every: Number of epochs between two validations; the last epoch is then always validated; 0: no validation.
        epochs: Number of epochs of the training.
        precision: Precision of the forward pass.
        best: Keeps the best weights, on worker 0; None: they are not kept.
    """

    store: Path
    transform: ReIDTest
    every: int
    epochs: int
    precision: WantedPrecision
    best: Best | None = None

    def __call__(self, method: nn.Module, device: torch.device, threads: int) -> Callable[[float], dict[str, float]]:
        """Return a function (finished epochs) → `eval_mAP` and `eval_rank1`; empty if not due or not on worker 0."""
        store = ImageStore(self.store)
        query, gallery = store.rows_of("query"), store.rows_of("gallery")
        rows, n = np.concatenate([query, gallery]), len(query)
        precision = resolve_precision(self.precision, device)

        def look(epochs: float) -> dict[str, float]:
            if not epochs or not periodic_metrics.due(epochs, self.every, self.epochs):
                return {}
            # If batch norm uses each worker's own statistics, those of worker 0 are kept.
            parallel.broadcast_buffers(method)
            features = extract(method, store, rows, self.transform, device, precision, threads)
            if parallel.rank():
                return {}
            pids, camids = store.pids[rows], store.camids[rows]
            report = evaluate_retrieval(
                features[:n], features[n:], pids[:n], pids[n:], camids[:n], camids[n:], max_rank=1
            )
            seen = {"eval_mAP": report.mAP, "eval_rank1": report.rank(1)}
            if self.best is not None:
                self.best(method, round(epochs), seen)
            return seen

        return look
