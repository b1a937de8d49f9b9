"""Ending a pre-training that will not come to much: the median rule on what its probe finds, inside the training loop.

As in Golovin et al., "Google Vizier" (KDD 2017), §3.2.2, but by the best figure so far on both sides. No scheduler of
Ray Tune does it: one that ends trials leaves the placement groups of their Train runs behind.
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
"""Rivals that must have come as far before any training is ended."""
_MEASURE = "probe_mAP"


@dataclass(frozen=True)
class MedianStopping:
    """What a pre-training is held against; travels to the workers pickled.

    Attributes:
        journals: files that the other pre-trainings of a sweep write their rows to, and its own.
        grace: epochs before which none is ended.
    """

    journals: tuple[Path, ...]
    grace: int

    def verdict(self, epochs: int, best: float, own: Path) -> str | None:
        """Why a training should end whose best probe after `epochs` is `best`; None: it should not.

        Args:
            epochs: done.
            best: mAP in [0, 1].
            own: its journal, which is no rival's.
        """
        if epochs < self.grace:
            return None
        reached = [_best(path, epochs) for path in self.journals if path != own]
        others = [value for value in reached if value is not None]
        if len(others) < LEAST or best >= median(others):
            return None
        return (
            f"stopped after epoch {epochs}: its probe's mAP of {100 * best:.1f} lies below the median of "
            f"{len(others)} other trials, {100 * median(others):.1f}"
        )


@dataclass(frozen=True)
class Judged:
    """A probe that also ends a training by the median rule; travels to the workers pickled.

    Attributes:
        probe: what makes the look.
        stopping: what it is held against.
        journal: the training's own.
    """

    probe: Callable[[Pretraining, torch.device, int], Callable[[int], dict[str, float]]]
    stopping: MedianStopping
    journal: Path

    def __call__(self, method: Pretraining, device: torch.device, threads: int) -> Callable[[int], dict[str, float]]:
        """(epochs done) → the probe's figures, or nothing where none is due.

        Raises (the function that is returned):
            StoppedEarly: on worker 0, where the rule ends the training; Ray then stops the others.
        """
        look = self.probe(method, device, threads)

        def judge(epochs: int) -> dict[str, float]:
            found = look(epochs)
            if found and parallel.rank() == 0:
                best = max(found[_MEASURE], _best(self.journal, epochs, whole=False) or 0.0)
                reason = self.stopping.verdict(epochs, best, self.journal)
                if reason is not None:
                    raise StoppedEarly(reason)
            return found

        return judge


def _best(path: Path, epochs: int, whole: bool = True) -> float | None:
    """The best probe of a journal up to an epoch; None where there is none, or, if `whole`, where it is not as far."""
    probes = [(row["epoch"], row[_MEASURE]) for row in Journal(path).history() if _MEASURE in row]
    if whole and not any(epoch >= epochs for epoch, _ in probes):
        return None
    return max((value for epoch, value in probes if epoch <= epochs), default=None)
