"""Supervised ReID: identity and triplet loss over a BNNeck, the recipe that fine-tunes on a labelled target.

TransReID's baseline (He et al., arXiv 2102.04378, §3.1) as TransReID-SSL fine-tunes with it (arXiv 2111.12084): no
camera embedding, no jigsaw branch, no label smoothing.
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
    """A training method: backbone, BNNeck and classifier with their losses, optimizer and schedule.

    The triplet loss acts on the backbone's feature, cross-entropy on the logits after the neck. The feature for
    retrieval is the one before the neck (`forward`), to be L2-normalised.

    Args:
        base: the backbone.
        identities: number of classes; labels run from 0 to `identities` − 1.
        epochs, warmup_epochs, steps_per_epoch: see `schedules.EpochCosine`.
        lr: peak rate of the weights; the warm-up starts at 0.01 × and the cosine ends at 0.002 × it, for biases too.
        bias_lr_factor: peak rate of biases in units of `lr`.
        momentum: of SGD.
        weight_decay: of every parameter, biases included.
        optimizer: "sgd" as published, or "adamw" (with torch's betas).
        margin: of the triplet loss; None for the soft margin.
        global_mining: mine triplets and take batch statistics over all workers' batches; they must then be
            equally large. By default both are per worker, as published.
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
        """The retrieval feature before the neck: (B, 3, H, W) → (B, D), not normalised."""
        return self.base.features([images])

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Losses of images (B, 3, H, W) with labels (B,) int64 in [0, identities).

        Where a label stands alone in the batch its hardest positive is itself, and only its negatives teach.

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
        """A fresh optimizer with two parameter groups, named `weights` and `biases`.

        As published, a parameter counts as a bias when its name holds "bias" (Swin's relative position tables too).
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
        """Set the rates of optimizer step `step` (from 0); they change between epochs only."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedules[group["name"]](step)
        return {"lr": self.schedules["weights"](step), "lr_bias": self.schedules["biases"](step)}

    def before_update(self, step: int) -> dict[str, Tensor]:
        """Nothing to clip or freeze; the gradients' norms, see `norm_scalars`."""
        return norm_scalars(gradient_norms(self.parameters()))

    def after_update(self, step: int) -> None:
        """Nothing moves besides the parameters."""
