"""The probe of a pre-training, bound to the image store of a target."""

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
    """A probe of the backbone that a training would keep, run by all workers together; sent to them by pickling.

    Attributes:
        store: Path of the target's image store.
        probe: The choice of images.
        size: (height, width) of the backbone's input in pixels.
        every: Number of epochs between two probes; the end of the training is always probed.
        epochs: Number of epochs of the training, which need not be whole.
        precision: Precision of the forward pass.
    """

    store: Path
    probe: Probe
    size: tuple[int, int]
    every: int
    epochs: float
    precision: WantedPrecision

    def __call__(self, method: Pretraining, device: torch.device, threads: int) -> Callable[[float], dict[str, float]]:
        """Return a function (finished epochs) → probe results, empty if no probe is due."""
        store = ImageStore(self.store)
        transform = ReIDTest(self.size, IMAGENET_MEAN, IMAGENET_STD)
        precision = resolve_precision(self.precision, device)

        def look(epochs: float) -> dict[str, float]:
            if not periodic_metrics.due(epochs, self.every, self.epochs):
                return {}
            features = extract(method.backbone, store, self.probe.rows, transform, device, precision, threads)
            return self.probe.score(features)

        return look


def on_target(context: StageContext, config: Pretrain, backbone: Backbone, epochs: float) -> TargetProbe | None:
    """Return the probe of a run of that length on the stage's auxiliary input `target`; None without such an input.

    Raises:
        UserError: No identity of the target can be found by a probe.
    """
    if "target" not in context.artifact.auxiliary:
        return None
    store = ImageStore(context.input("target"))
    probe = choose_probe(store.pids, store.camids, store.rows_of("train"), config.probe_images)
    profile = {"queries": probe.queries, "gallery": len(probe.rows) - probe.queries}
    context.run.dataset("target", store.fingerprint, str(store.directory), profile, "probe")
    every = config.probe_interval(epochs)
    return TargetProbe(store.directory, probe, backbone.img_size, every, epochs, config.precision)
