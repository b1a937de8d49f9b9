"""Supervised ReID: identity and triplet loss over a BNNeck, the recipe for fine-tuning on a labelled target.

It is TransReID's baseline (He et al., arXiv 2102.04378, §3.1) as used for fine-tuning in TransReID-SSL (arXiv
2111.12084): no camera embedding, no jigsaw branch, and by default no label smoothing.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn

from rayreid.models.backbones import Backbone
from rayreid.models.norms import set_synchronised
from rayreid.reid.bnneck import BNNeck, applied, identity_classifier
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
        label_smoothing: Share of the target distribution that is spread evenly over all classes (Szegedy et al., arXiv
            1512.00567).
        triplet_weight: Factor of the triplet loss.
        triplet_start_epoch: First epoch, from 0, in which the triplet loss counts.
        triplet_normalise: See `losses.triplet_loss`.
        layer_decay: Factor by which the rate falls from each layer to the one below it (Bao et al., BEiT, arXiv
            2106.08254). The neck and the classifier have the full rate, the last block has `layer_decay` times it.
        freeze_epochs: Number of epochs from the start in which the weights of the backbone stay as they are.
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
        label_smoothing: float = 0.0,
        triplet_weight: float = 1.0,
        triplet_start_epoch: int = 0,
        triplet_normalise: bool = False,
        layer_decay: float = 1.0,
        freeze_epochs: int = 0,
    ):
        super().__init__()
        self.base = base
        self.num_features = base.num_features
        self.bottleneck = BNNeck(base.num_features)
        self.classifier = identity_classifier(base.num_features, identities)
        self.optimizer, self.momentum, self.weight_decay = optimizer, momentum, weight_decay
        self.margin, self.global_mining, self.label_smoothing = margin, global_mining, label_smoothing
        self.triplet_weight, self.triplet_start_epoch = triplet_weight, triplet_start_epoch
        self.triplet_normalise = triplet_normalise
        self.layer_decay, self.freeze_epochs = layer_decay, freeze_epochs
        self.steps_per_epoch, self._epoch = steps_per_epoch, 0
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
            Scalars `loss` = `id_loss` + `triplet_weight` · `triplet_loss`; `accuracy` of the classifier on this batch,
            in [0, 1]; `mean_length`, the length of the mean of the features scaled to length 1, which is 1 if all are
            alike.
        """
        images, labels = batch
        features = self(images)
        logits = applied(self.classifier, applied(self.bottleneck, features))
        id_loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        mined, theirs = (gather_rows(features), gather_rows(labels)) if self.global_mining else (features, labels)
        triplet = triplet_loss(mined, theirs, self.margin, self.triplet_normalise)
        weight = self.triplet_weight if self._epoch >= self.triplet_start_epoch else 0.0
        return {
            "loss": id_loss + weight * triplet,
            "id_loss": id_loss.detach(),
            "triplet_loss": triplet.detach(),
            "accuracy": (logits.argmax(dim=1) == labels).to(logits.dtype).mean(),
            "mean_length": torch.linalg.vector_norm(F.normalize(features.detach().float()).mean(dim=0)),
        }

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer with two parameter groups, named `weights` and `biases`.

        As published, a parameter counts as a bias if its name contains "bias" (including Swin's relative position
        tables). With `layer_decay`, there are two such groups for each layer; the key `share` is their share of the
        rate.
        """
        shares = self._shares_of_rate()
        grouped: dict[tuple[str, float], list[nn.Parameter]] = {}
        for kind in self.schedules:
            for name, value in self.named_parameters():
                if value.requires_grad and ("bias" in name) == (kind == "biases"):
                    grouped.setdefault((kind, shares.get(name, 1.0)), []).append(value)
        groups = [{"name": kind, "share": share, "params": values} for (kind, share), values in grouped.items()]
        lr = self.schedules["weights"](0)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def _shares_of_rate(self) -> dict[str, float]:
        """Return {name of a parameter of the backbone: its share of the rate}; empty without `layer_decay`."""
        if self.layer_decay == 1:
            return {}
        matcher: Any = self.base.group_matcher
        layers = group_parameters(self.base, matcher(coarse=False), reverse=True)
        above = max(layers.values()) + 1
        return {f"base.{name}": self.layer_decay ** (above - layer) for name, layer in layers.items()}

    def set_schedules(self, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
        """Set the rates of optimizer step `step` (from 0), and return them for logging.

        They change only between epochs.
        """
        self._epoch = step // self.steps_per_epoch
        for group in optimizer.param_groups:
            share = group.get("share", 1.0)  # checkpoints of earlier versions do not have it
            group["lr"] = self.schedules[group["name"]](step) * share
        return {"lr": self.schedules["weights"](step), "lr_bias": self.schedules["biases"](step)}

    def before_update(self, step: int) -> dict[str, Tensor]:
        """Drop the backbone's gradients while it is frozen, and return the norms of the others (`norm_scalars`).

        Without a gradient, an optimizer changes a parameter neither by its momentum nor by weight decay.
        """
        if self._epoch < self.freeze_epochs:
            for parameter in self.base.parameters():
                parameter.grad = None
        return norm_scalars(gradient_norms(self.parameters()))

    def after_update(self, step: int) -> None:
        """Do nothing: only the parameters change."""
