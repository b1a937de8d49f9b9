"""Looks at query and gallery while a model is trained, without a second loader and with no effect on the training."""

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
from rayreid.models.weights import read_header
from rayreid.training import parallel
from rayreid.training.loop import WantedPrecision, resolve_precision


@dataclass(frozen=True)
class Best:
    """Keeps the weights of the epoch with the highest mAP, the earlier one of equals; travels to the workers pickled.

    What is best so far stands in the file itself, so that a training that was interrupted knows it, too.

    Attributes:
        path: the file.
        save: (path, method, facts for the header) writes it.
    """

    path: Path
    save: Callable[..., None]

    def __call__(self, method: nn.Module, epochs: int, seen: dict[str, float]) -> None:
        """Keep the method's weights after so many epochs if what was seen of them is better."""
        if not self.path.exists() or read_header(self.path)["eval_mAP"] < seen["eval_mAP"]:
            self.save(self.path, method, epochs=epochs, **seen)


@dataclass(frozen=True)
class Look:
    """Looks at query and gallery in passing, on every worker together; travels to them pickled.

    The published code does so, too. The weights that count are the last, whatever is seen.

    Attributes:
        store: the target's image store.
        transform: of the images.
        every: epochs between two looks, the last epoch is then always looked at; 0: none.
        epochs: length of the training.
        precision: of the forward pass.
        best: keeps the best weights, on worker 0; None: they are not kept.
    """

    store: Path
    transform: ReIDTest
    every: int
    epochs: int
    precision: WantedPrecision
    best: Best | None = None

    def __call__(self, method: nn.Module, device: torch.device, threads: int) -> Callable[[int], dict[str, float]]:
        """(epochs done) → `eval_mAP` and `eval_rank1`, on worker 0; or nothing where no look is due."""
        store = ImageStore(self.store)
        query, gallery = store.rows_of("query"), store.rows_of("gallery")
        rows, n = np.concatenate([query, gallery]), len(query)
        precision = resolve_precision(self.precision, device)

        def look(epochs: int) -> dict[str, float]:
            if not periodic_metrics.due(epochs, self.every, self.epochs):
                return {}
            # Where batch norm takes each worker's own statistics, worker 0's are those that are kept.
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
                self.best(method, epochs, seen)
            return seen

        return look
