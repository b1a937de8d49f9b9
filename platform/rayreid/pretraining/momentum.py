"""The momentum encoder, and the common base of the methods that contrast with one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn

from rayreid.models.backbones import Backbone
from rayreid.models.decay import split_decay
from rayreid.pretraining.contrast import Contrast, Queue, feature_std
from rayreid.pretraining.projector import projected
from rayreid.training.gradients import clip_together, gradient_norms, norm_scalars
from rayreid.training.schedules import Schedule

OPTIMIZERS: dict[str, Any] = {
    "adamw": partial(torch.optim.AdamW, weight_decay=0.0, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "lars": partial(Lars, momentum=0.9),  # trust coefficient 0.001 (You et al., arXiv 1708.03888)
}


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, momentum: float) -> None:
    """Update the parameters of a follower: follower ← m·follower + (1 − m)·leader.

    Buffers are not updated: in all published code of DINO, MoCo and MoBY, the batch norm of each side keeps its own
    running statistics. Both are in train mode and normalise with those of the batch.
    """
    torch._foreach_lerp_(list(follower.parameters()), list(leader.parameters()), 1 - momentum)


class Encoder(nn.Module):
    """Backbone and projector of one side."""

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, W) and projections (B, D) of a view (B, 3, H, W)."""
        features = self.backbone.features([view])
        return features, projected(self.projector, features)


@dataclass(frozen=True)
class Rates:
    """Optimizer and schedules of a method.

    Attributes:
        optimizer: AdamW, SGD with momentum 0.9, or LARS with momentum 0.9.
        lr: Learning rate by step.
        weight_decay: Weight decay.
        momentum: Share of itself that the momentum encoder keeps, by the number of steps done.
        clip: Norm to which all gradients together are clipped; None: no clipping.
    """

    optimizer: Literal["adamw", "sgd", "lars"]
    lr: Schedule
    weight_decay: float
    momentum: Schedule
    clip: float | None = None


class MomentumMethod(nn.Module):
    """A method whose `base` encoder is trained while its `momentum` encoder follows: MoCo v2, MoCo v3, MoBY.

    Subclasses make the parts and compute the losses of a batch. Both sides stay in train mode. The published code
    updates the momentum encoder at the beginning of a step; here it is updated at the end of the step before, which
    gives the same result with the momentum of the coming step.

    Args:
        base: The trained encoder; its backbone is kept for ReID (the authors of all three methods evaluate it).
        momentum: An encoder with the same parts; overwritten with the weights of `base`.
        rates: Optimizer and schedules.
        decay_all: Whether biases and 1-D parameters have weight decay, too.
    """

    def __init__(
        self,
        base: Encoder,
        momentum: Encoder,
        rates: Rates,
        decay_all: bool = False,
    ) -> None:
        super().__init__()
        self.base, self.momentum, self.rates = base, momentum, rates
        self.momentum.load_state_dict(self.base.state_dict())
        self.momentum.requires_grad_(False)
        self.decay_all = decay_all

    @property
    def backbone(self) -> Backbone:
        """Return the backbone to keep for ReID: the trained one."""
        return self.base.backbone

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer in two groups: matrices, and biases with other 1-D parameters.

        LARS scales only the steps of the first group (MoCo v3, its optimizer).
        """
        parameters = dict(self.named_parameters())
        groups = [
            {"params": [parameters[name] for name in names], "matrices": matrices, "always_adapt": matrices}
            for names, matrices in zip(split_decay(self), (True, False), strict=True)
        ]
        optimizer: torch.optim.Optimizer = OPTIMIZERS[self.rates.optimizer](groups, lr=self.rates.lr(0))
        return optimizer

    def set_schedules(self, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
        """Set the rates of optimizer step `step` (0-based), and return them for logging."""
        lr = self.rates.lr(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = self.rates.weight_decay if self.decay_all or group["matrices"] else 0.0
        return {"lr": lr, "teacher_momentum": self.rates.momentum(step)}

    @torch.no_grad()
    def before_update(self, step: int) -> dict[str, Tensor]:
        """Clip all gradients together to norm `clip`, and return the norms before clipping; see `norm_scalars`."""
        norms = gradient_norms(self.parameters())
        if self.rates.clip is not None:
            clip_together(self.parameters(), norms, self.rates.clip)
        return norm_scalars(norms)

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Update the momentum encoder and the queues, once per step."""
        follow(self.momentum, self.base, self.rates.momentum(step + 1))
        for module in self.modules():
            if isinstance(module, Queue):
                module.advance()


def logged(loss: Tensor, directions: Sequence[Contrast], features: Tensor) -> dict[str, Tensor]:
    """Return the result of `losses` of a momentum method.

    Args:
        loss: The loss to backpropagate.
        directions: Its parts.
        features: (N, W), the output of the momentum encoder's backbone.

    Returns:
        `loss`; `accuracy`, the share of queries whose own key is the nearest; and `feature_std`, see `feature_std`.
    """
    accuracy = torch.stack([direction.accuracy for direction in directions]).mean()
    return {"loss": loss, "accuracy": accuracy, "feature_std": feature_std(features)}
