"""Schedules of a DINO run: the optimizer's rates, and the teacher's momentum and temperature."""

from dataclasses import dataclass
from typing import NamedTuple

from rayreid.errors import UserError
from rayreid.training.schedules import LinearWarmup, WarmupCosine


class DINORates(NamedTuple):
    """The rates of one optimizer step."""

    lr: float
    weight_decay: float
    teacher_momentum: float
    teacher_temp: float


@dataclass(frozen=True)
class DINOSchedules:
    """DINO's four schedules (arXiv 2104.14294, section 3), each a function of the step alone.

    The teacher's temperature changes by epoch, all others by step, as published.

    Attributes:
        epochs: Number of epochs of the run, which need not be whole.
        steps_per_epoch: Number of optimizer steps per epoch.
        lr: Peak learning rate, already scaled to the global batch (5e-4 × batch/256).
        min_lr: Rate that the cosine approaches.
        warmup_epochs: Number of epochs of linear warm-up from 0, likewise.
        weight_decay: AdamW's initial decay; it changes by a cosine.
        weight_decay_end: AdamW's final decay.
        teacher_momentum: Momentum at the first step; it rises by a cosine to 1.
        teacher_temp: The teacher's temperature (after its warm-up).
        warmup_teacher_temp: Its temperature in the first epoch; None: `teacher_temp` throughout.
        warmup_teacher_temp_epochs: Number of epochs over which it then rises linearly.

    Raises:
        UserError: There are more epochs of warm-up than epochs.
    """

    epochs: float
    steps_per_epoch: int
    lr: float
    min_lr: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    teacher_momentum: float = 0.996
    teacher_temp: float = 0.04
    warmup_teacher_temp: float | None = None
    warmup_teacher_temp_epochs: int = 0

    def __post_init__(self) -> None:
        """Refuse a warm-up that is too long."""
        if self.warmup_epochs > self.epochs:
            raise UserError(
                f"warmup_epochs {self.warmup_epochs} is more than epochs {self.epochs}; lower warmup_epochs"
            )

    def epoch(self, step: int) -> int:
        """Return the epoch (0-based) of optimizer step `step`."""
        return step // self.steps_per_epoch

    def at(self, step: int) -> DINORates:
        """Return the rates of optimizer step `step` (0-based)."""
        steps, warmup = (round(epochs * self.steps_per_epoch) for epochs in (self.epochs, self.warmup_epochs))
        coldest = self.teacher_temp if self.warmup_teacher_temp is None else self.warmup_teacher_temp
        return DINORates(
            lr=WarmupCosine(self.lr, self.min_lr, steps, warmup)(step),
            weight_decay=WarmupCosine(self.weight_decay, self.weight_decay_end, steps)(step),
            teacher_momentum=WarmupCosine(self.teacher_momentum, 1.0, steps)(step),
            teacher_temp=LinearWarmup(coldest, self.teacher_temp, self.warmup_teacher_temp_epochs)(self.epoch(step)),
        )
