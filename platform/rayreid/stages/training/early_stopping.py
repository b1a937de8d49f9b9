"""Early stopping of unpromising pre-trainings: the median rule on probe results, inside the training loop.

The rule is that of Golovin et al., "Google Vizier" (KDD 2017), §3.2.2, except that both sides use the best result so
far. No scheduler of Ray Tune is used, because one that ends trials leaves the placement groups of their Train runs
behind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from rayreid.errors import StoppedEarly
from rayreid.stages.training.methods import Pretraining
from rayreid.storage.metrics_log import Journal
from rayreid.training import parallel

LEAST = 3
"""Number of other trials that must have come as far before a training may be stopped."""
_MEASURE = "probe_mAP"


@dataclass(frozen=True)
class MedianStopping:
    """The median rule for one sweep; sent to the workers by pickling.

    Attributes:
        journals: Metric journals of all pre-trainings of the sweep, including the training's own.
        grace: Number of epochs before which no training is stopped.
    """

    journals: tuple[Path, ...]
    grace: int

    def verdict(self, epochs: float, best: float, own: Path) -> str | None:
        """Return why a training should stop; None if it should go on.

        Args:
            epochs: Number of finished epochs.
            best: Best probe mAP of the training so far, in [0, 1].
            own: Journal of the training itself, which is left out of the comparison.
        """
        if epochs < self.grace:
            return None
        reached = [_best(path, epochs) for path in self.journals if path != own]
        others = [value for value in reached if value is not None]
        if len(others) < LEAST or best >= median(others):
            return None
        return (
            f"stopped after epoch {epochs:g}: its probe's mAP of {100 * best:.1f} lies below the median of "
            f"{len(others)} other trials, {100 * median(others):.1f}"
        )


@dataclass(frozen=True)
class Judged:
    """A probe that also stops a training by the median rule; sent to the workers by pickling.

    Attributes:
        probe: Factory of the probe itself.
        stopping: The median rule.
        journal: Journal of this training.
    """

    probe: Callable[[Pretraining, torch.device, int], Callable[[float], dict[str, float]]]
    stopping: MedianStopping
    journal: Path

    def __call__(self, method: Pretraining, device: torch.device, threads: int) -> Callable[[float], dict[str, float]]:
        """Return a function (finished epochs) → probe results, empty if no probe is due.

        Raises (the returned function):
            StoppedEarly: The rule stops the training. It is raised on worker 0; Ray then stops the others.
        """
        look = self.probe(method, device, threads)

        def judge(epochs: float) -> dict[str, float]:
            found = look(epochs)
            if found and epochs and parallel.rank() == 0:
                best = max(found[_MEASURE], _best(self.journal, epochs, whole=False) or 0.0)
                reason = self.stopping.verdict(epochs, best, self.journal)
                if reason is not None:
                    raise StoppedEarly(reason)
            return found

        return judge


def _best(path: Path, epochs: float, whole: bool = True) -> float | None:
    """Return a journal's best probe up to an epoch; None without one or, if `whole`, if no probe has come that far."""
    rows = [row for row in Journal(path).history() if _MEASURE in row and row.get("epoch", 0) > 0]
    probes = [(row["epoch"], row[_MEASURE]) for row in rows]
    if whole and not any(epoch >= epochs for epoch, _ in probes):
        return None
    return max((value for epoch, value in probes if epoch <= epochs), default=None)
