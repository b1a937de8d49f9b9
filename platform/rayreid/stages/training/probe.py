"""The probe of a pre-training: how it is bound to a target's store."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rayreid.config import Backbone, Pretrain
from rayreid.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from rayreid.data.augment.reid_transforms import ReIDTest
from rayreid.data.store.store import ImageStore
from rayreid.evaluation.probe import Probe, choose_probe, extract
from rayreid.execution import periodic_metrics
from rayreid.execution.production import StageContext
from rayreid.stages.training.methods import Pretraining
from rayreid.training.loop import WantedPrecision, resolve_precision


@dataclass(frozen=True)
class TargetProbe:
    """Probes the backbone that a training would keep, on every worker together; travels to them pickled.

    Attributes:
        store: the target's image store.
        probe: which of its images.
        size: height and width at which the backbone sees them.
        every: epochs between two probes; the last epoch is always followed by one.
        epochs: length of the training.
        precision: of the forward pass.
    """

    store: Path
    probe: Probe
    size: tuple[int, int]
    every: int
    epochs: int
    precision: WantedPrecision

    def __call__(self, method: Pretraining, device: torch.device, threads: int) -> Callable[[int], dict[str, float]]:
        """(epochs done) → the probe's figures, or nothing where none is due."""
        store = ImageStore(self.store)
        transform = ReIDTest(self.size, IMAGENET_MEAN, IMAGENET_STD)
        precision = resolve_precision(self.precision, device)

        def look(epochs: int) -> dict[str, float]:
            if not periodic_metrics.due(epochs, self.every, self.epochs):
                return {}
            features = extract(method.backbone, store, self.probe.rows, transform, device, precision, threads)
            return self.probe.score(features)

        return look


def on_target(context: StageContext, config: Pretrain, backbone: Backbone) -> TargetProbe | None:
    """The probe on the target that the stage was given beside its inputs; None where it was given none.

    Raises:
        UserError: the target has no identity that could be found again.
    """
    if "target" not in context.artifact.auxiliary:
        return None
    store = ImageStore(context.input("target"))
    probe = choose_probe(store.pids, store.camids, store.rows_of("train"), config.probe_images)
    profile = {"queries": probe.queries, "gallery": len(probe.rows) - probe.queries}
    context.run.dataset("target", store.fingerprint, str(store.directory), profile, "probe")
    return TargetProbe(store.directory, probe, backbone.img_size, config.probe_epochs, config.epochs, config.precision)
