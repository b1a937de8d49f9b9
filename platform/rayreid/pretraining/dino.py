"""DINO pre-training as a method of the training loop: student, teacher and update rules."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rayreid.models.backbones import Backbone
from rayreid.models.decay import split_decay
from rayreid.pretraining.contrast import feature_std
from rayreid.pretraining.dino_loss import DINOLoss
from rayreid.pretraining.dino_schedules import DINOSchedules
from rayreid.pretraining.head import DINOHead
from rayreid.pretraining.momentum import follow
from rayreid.training.gradients import clip_each, gradient_norms, norm_scalars


class Network(nn.Module):
    """Backbone and head of one side; the state names `backbone.*` and `head.*` are the published ones."""

    def __init__(self, backbone: Backbone, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return features (N, D) and logits (N, K) of crops, one tensor (n, 3, H, W) per size; N is the sum of n.

        There is one backbone pass per size, so that batch norm takes its statistics per size, and one pass of the head.
        """
        features = self.backbone.features(crops)
        return features, self.head(features)


class DINO(nn.Module):
    """Self-distillation with no labels (arXiv 2104.14294), as in TransReID-SSL (arXiv 2111.12084).

    Both networks stay in train mode. The teacher starts as a copy of the student and follows its parameters, not its
    buffers. There is no step counter: everything that changes over the run is a function of the step that the loop
    gives.

    Args:
        student_backbone: Network (n, 3, H, W) → (n, D) with `num_features` = D; the one with drop path.
        teacher_backbone: The same network without drop path; overwritten with the student's weights.
        schedules: Schedules of everything that changes over the run.
        out_dim: See `DINOHead`.
        hidden_dim: See `DINOHead`.
        bottleneck_dim: See `DINOHead`.
        student_temp: The student's temperature.
        centre_momentum: Share of the old centre that an update keeps.
        clip: Norm to which the gradient of each parameter tensor is clipped; None: no clipping.
        freeze_last_layer_epochs: Number of epochs in which the head's last layer is frozen.
    """

    def __init__(
        self,
        student_backbone: Backbone,
        teacher_backbone: Backbone,
        schedules: DINOSchedules,
        *,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        student_temp: float = 0.1,
        centre_momentum: float = 0.9,
        clip: float | None = 3.0,
        freeze_last_layer_epochs: int = 1,
    ) -> None:
        super().__init__()
        width = int(student_backbone.num_features)
        self.student = Network(student_backbone, DINOHead(width, out_dim, hidden_dim, bottleneck_dim))
        self.teacher = Network(teacher_backbone, DINOHead(width, out_dim, hidden_dim, bottleneck_dim))
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.loss = DINOLoss(out_dim, student_temp, centre_momentum)
        self.schedules = schedules
        self.rates = schedules.at(0)
        self.clip = clip
        self.freeze_last_layer_epochs = freeze_last_layer_epochs

    @property
    def backbone(self) -> Backbone:
        """Return the backbone to keep for ReID: that of the teacher."""
        return self.teacher.backbone

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW over the student in two groups: with weight decay, and without (biases, 1-D parameters)."""
        parameters = dict(self.named_parameters())
        groups = [
            {"params": [parameters[name] for name in names], "decayed": decayed}
            for names, decayed in zip(split_decay(self), (True, False), strict=True)
        ]
        return torch.optim.AdamW(groups, lr=self.rates.lr, weight_decay=0.0, fused=True)

    def set_schedules(self, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
        """Set the rates of optimizer step `step` (0-based), before its `losses`; return them for logging."""
        self.rates = self.schedules.at(step)
        for group in optimizer.param_groups:
            group["lr"] = self.rates.lr
            group["weight_decay"] = self.rates.weight_decay if group["decayed"] else 0.0
        return self.rates._asdict()

    def losses(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the losses of one micro-batch of B images.

        Args:
            batch: Crop-major: the two global crops (2B, 3, H, W) and, if any, n local ones (nB, 3, h, w).

        Returns:
            `loss` (scalar, to backpropagate) and, detached: its two parts `teacher_entropy` and `kl` in nats; and
            `feature_std`, the spread of the teacher's L2-normalised features: 1 if isotropic, 0 if collapsed.
        """
        with torch.no_grad():
            features, teacher_logits = self.teacher(batch[:1])
        _, student_logits = self.student(batch)
        terms = self.loss(student_logits, teacher_logits, self.rates.teacher_temp)
        return {**terms._asdict(), "feature_std": feature_std(features)}

    @torch.no_grad()
    def before_update(self, step: int) -> dict[str, Tensor]:
        """Drop the last layer's gradients in the first epochs, and clip every tensor's gradient to norm `clip`.

        A dropped gradient is None, not zero, so that AdamW does not touch the layer, neither by decay nor by moments.

        Returns:
            The norms before clipping, see `norm_scalars`.
        """
        if self.schedules.epoch(step) < self.freeze_last_layer_epochs:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None
        norms = gradient_norms(self.student.parameters())
        if self.clip is not None:
            clip_each(self.student.parameters(), norms, self.clip)
        return norm_scalars(norms)

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Update the teacher's parameters, teacher ← m·teacher + (1 − m)·student, then the centre; once per step."""
        follow(self.teacher, self.student, self.schedules.at(step).teacher_momentum)
        self.loss.update_centre()
