"""Cluster contrast: learning from pseudo labels that are computed again in every epoch.

Dai et al., arXiv 2103.11568, as TransReID-SSL uses it for unsupervised learning (USL) and domain adaptation (UDA): a
batch norm over the backbone's feature, and cross-entropy against a memory of one vector per cluster.
`reid.pseudo_labels` assigns the images to clusters.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayreid.models.backbones import Backbone
from rayreid.reid.bnneck import BNNeck, applied
from rayreid.reid.memory import ClusterMemory, Variant
from rayreid.training.gradients import gradient_norms, norm_scalars
from rayreid.training.parallel import broadcast
from rayreid.training.schedules import EpochSteps

_MEMORY = "memory.features"
_DECAY = 0.1


class ClusterContrast(nn.Module):
    """A training method: backbone, BNNeck and cluster memory, with their loss, optimizer and schedule.

    Clustering, memory and evaluation use the same feature: the neck's output, L2-normalised. Batch statistics cover the
    batches of all workers, so what is learned does not depend on the number of workers.

    Attributes:
        num_features: D, the width of the feature.
        memory: (C, D), the memory of the epoch's clusters; None before the first call of `remember`.

    Args:
        base: The backbone.
        steps_per_epoch: Number of optimizer steps per epoch.
        lr: Learning rate of all parameters, including biases, in the first epochs.
        decay_every: Number of epochs after which the rate is multiplied by 0.1, repeatedly.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of every parameter.
        temperature: See `ClusterMemory`.
        memory_momentum: See `ClusterMemory`.
        variant: See `ClusterMemory`.
    """

    memory: ClusterMemory | None

    def __init__(
        self,
        base: Backbone,
        *,
        steps_per_epoch: int = 200,
        lr: float = 3.5e-4,
        decay_every: int = 20,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        temperature: float = 0.05,
        memory_momentum: float = 0.2,
        variant: Variant = "hard",
    ):
        super().__init__()
        self.num_features = base.num_features
        self.base = base
        self.bottleneck = BNNeck(base.num_features)
        self.register_module("memory", None)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.temperature, self.memory_momentum, self.variant = temperature, memory_momentum, variant
        self.schedule = EpochSteps(lr, _DECAY, decay_every, steps_per_epoch)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature (B, D), of length 1, of images (B, 3, H, W)."""
        return F.normalize(applied(self.bottleneck, self.base.features([images])), dim=1)

    @torch.no_grad()
    def after_neck(self, features: Tensor) -> Tensor:
        """Return the result of `forward` in eval mode from the backbone's features (N, D).

        It is float32 (N, D), of length 1.
        """
        scale, shift = self.bottleneck.scale_and_shift()
        return F.normalize(features * scale + shift, dim=1)

    @torch.no_grad()
    def settle(self, features: Tensor) -> None:
        """Give the neck the statistics of the backbone's features (N, D) of all images, before the first clustering.

        Deviation: the published code clusters the first epoch with a neck of mean 0 and variance 1, and trains it with
        one that takes each batch's statistics. The component common to all features is then in the memory but not in
        the features that are compared with it, and a backbone whose features share much unlearns what it had learned
        (docs/results.md).
        """
        variance, mean = torch.var_mean(features, dim=0)
        neck = self.bottleneck
        assert neck.running_mean is not None and neck.running_var is not None
        neck.running_mean.copy_(mean)
        neck.running_var.copy_(variance)

    def remember(self, centres: Tensor) -> None:
        """Start an epoch's memory with the centres of its clusters, (C, D); all workers take those of worker 0."""
        centres = broadcast(centres.clone())
        self.memory = ClusterMemory(centres, self.temperature, self.memory_momentum, self.variant)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Restore the result of `state_dict`, whatever its number of clusters."""
        if _MEMORY in state_dict:
            held: Tensor = state_dict[_MEMORY]
            self.memory = ClusterMemory(held, self.temperature, self.memory_momentum, self.variant)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the loss of images (B, 3, H, W) of clusters (B,) int64, and the memory's `accuracy` in [0, 1].

        The features are kept for `after_update`, which moves the memory by the same features that the loss was computed
        from.
        """
        assert self.memory is not None, "no clusters yet"
        images, targets = batch
        features = self(images)
        self._seen.append((features.detach(), targets))
        guess = (features.detach() @ self.memory.features.t()).argmax(dim=1)
        return {"loss": self.memory(features, targets), "accuracy": (guess == targets).to(features.dtype).mean()}

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer over all trained parameters."""
        trained = [value for value in self.parameters() if value.requires_grad]
        return torch.optim.SGD(trained, lr=self.schedule(0), momentum=self.momentum, weight_decay=self.weight_decay)

    def set_schedules(self, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
        """Set the rate of optimizer step `step` (from 0), and return it for logging."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule(step)
        return {"lr": self.schedule(step)}

    def before_update(self, step: int) -> dict[str, Tensor]:
        """Return the norms of the gradients, see `norm_scalars`; there is nothing to clip or freeze."""
        return norm_scalars(gradient_norms(self.parameters()))

    def after_update(self, step: int) -> None:
        """Update the memory once, with the whole global batch."""
        assert self.memory is not None
        features, targets = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        self.memory.update(features, targets)
