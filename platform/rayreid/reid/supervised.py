"""Supervised ReID: identity and triplet loss over a BNNeck, the recipe for fine-tuning on a labelled target.

It is TransReID's baseline (He et al., arXiv 2102.04378, §3.1) as used for fine-tuning in TransReID-SSL (arXiv
2111.12084): no camera embedding, no jigsaw branch, no label smoothing.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayreid.models.backbones import Backbone
from rayreid.models.norms import set_synchronised
from rayreid.reid.bnneck import BNNeck, identity_classifier
from rayreid.reid.losses import triplet_loss
from rayreid.training.gradients import gradient_norms, norm_scalars
from rayreid.training.parallel import gather_rows
from rayreid.training.schedules import EpochCosine

WARMUP_START = 0.01  # × lr
FLOOR = 0.002  # × lr


class SupervisedReID(nn.Module):
    """A training method: backbone, BNNeck and classifier, with their losses, optimizer and schedule.

    The triplet loss uses the backbone's feature, cross-entropy the logits after the neck. The feature for retrieval is
    the one before the neck (`forward`), to be L2-normalised.

    Args:
        base: The backbone.
        identities: Number of classes; labels run from 0 to `identities` − 1.
        epochs: See `schedules.EpochCosine`.
        steps_per_epoch: See `schedules.EpochCosine`.
        warmup_epochs: See `schedules.EpochCosine`.
        lr: Peak rate of the weights. For weights and biases, the warm-up starts at 0.01 × and the cosine ends at 0.002
            × this rate.
        bias_lr_factor: Peak rate of biases in units of `lr`.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of every parameter, including biases.
        optimizer: "sgd" as published, or "adamw" (with torch's betas).
        margin: Margin of the triplet loss; None for the soft margin.
        global_mining: Whether to mine triplets and take batch statistics over the batches of all workers, which must
            then have equal sizes. By default both are per worker, as published.
    """

    def __init__(
        self,
        base: Backbone,
        identities: int,
        *,
        epochs: int = 120,
        steps_per_epoch: int = 1,
        warmup_epochs: int = 20,
        lr: float = 4e-4,
        bias_lr_factor: float = 2.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        margin: float | None = None,
        global_mining: bool = False,
    ):
        super().__init__()
        self.base = base
        self.num_features = base.num_features
        self.bottleneck = BNNeck(base.num_features)
        self.classifier = identity_classifier(base.num_features, identities)
        self.optimizer, self.momentum, self.weight_decay = optimizer, momentum, weight_decay
        self.margin, self.global_mining = margin, global_mining
        set_synchronised(self, global_mining)
        self.schedules = {
            kind: EpochCosine(peak, WARMUP_START * lr, FLOOR * lr, epochs, warmup_epochs, steps_per_epoch)
            for kind, peak in (("weights", lr), ("biases", lr * bias_lr_factor))
        }

    def forward(self, images: Tensor) -> Tensor:
        """Return the retrieval feature before the neck, (B, D), not normalised, of images (B, 3, H, W)."""
        return self.base.features([images])

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the losses of images (B, 3, H, W) with labels (B,) int64 in [0, identities).

        If a label occurs once in the batch, its hardest positive is the image itself, and only its negatives have an
        effect.

        Returns:
            Scalars `loss` = `id_loss` + `triplet_loss`, and `accuracy` of the classifier on this batch, in [0, 1].
        """
        images, labels = batch
        features = self(images)
        logits = self.classifier(self.bottleneck(features))
        id_loss = F.cross_entropy(logits, labels)
        if self.global_mining:
            triplet = triplet_loss(gather_rows(features), gather_rows(labels), self.margin)
        else:
            triplet = triplet_loss(features, labels, self.margin)
        return {
            "loss": id_loss + triplet,
            "id_loss": id_loss.detach(),
            "triplet_loss": triplet.detach(),
            "accuracy": (logits.argmax(dim=1) == labels).to(logits.dtype).mean(),
        }

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer with two parameter groups, named `weights` and `biases`.

        As published, a parameter counts as a bias if its name contains "bias" (including Swin's relative position
        tables).
        """
        trained = [(name, value) for name, value in self.named_parameters() if value.requires_grad]
        groups = [
            {"name": kind, "params": [value for name, value in trained if ("bias" in name) == (kind == "biases")]}
            for kind in self.schedules
        ]
        lr = self.schedules["weights"](0)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def set_schedules(self, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
        """Set the rates of optimizer step `step` (from 0), and return them for logging.

        They change only between epochs.
        """
        for group in optimizer.param_groups:
            group["lr"] = self.schedules[group["name"]](step)
        return {"lr": self.schedules["weights"](step), "lr_bias": self.schedules["biases"](step)}

    def before_update(self, step: int) -> dict[str, Tensor]:
        """Return the norms of the gradients, see `norm_scalars`; there is nothing to clip or freeze."""
        return norm_scalars(gradient_norms(self.parameters()))

    def after_update(self, step: int) -> None:
        """Do nothing: only the parameters change."""
