"""Schedules: small callables from the optimizer step (0-based) to a number.

They have no state: a resumed run asks for step *t* and gets the value of the uninterrupted run. Steps beyond the end
keep the last value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        """Return the value."""
        return self.value


@dataclass(frozen=True)
class LinearWarmup:
    """A straight line from `start` (step 0) to `end` (step `steps` − 1), then `end`.

    It is the warm-up of DINO's teacher temperature (arXiv 2104.14294, section 3.2), there counted in epochs.
    """

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        """Return the value at `step`."""
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * step / max(1, self.steps - 1)


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up from `start` to `peak`, then half a cosine from `peak` to `final`.

    It is the schedule of DINO's learning rate, weight decay and teacher momentum (arXiv 2104.14294, section 3). The
    warm-up takes `warmup_steps` steps, the first at `start` and the last at `peak`. The cosine spans the remaining
    steps and would reach `final` at step `steps`, the first one that is not run.

    Attributes:
        peak: Value at the end of the warm-up (at step 0 without a warm-up).
        final: Value that the cosine approaches.
        steps: Number of optimizer steps of the whole run.
        warmup_steps: Number of these steps that are warm-up.
        start: Value at step 0 if there is a warm-up.
    """

    peak: float
    final: float
    steps: int
    warmup_steps: int = 0
    start: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the value at `step`."""
        if step < self.warmup_steps:
            # max: a warm-up of a single step stays at its start, like a line of one point
            return self.start + (self.peak - self.start) * step / max(1, self.warmup_steps - 1)
        span = self.steps - self.warmup_steps
        done = min(step - self.warmup_steps, span)
        if span <= 0:
            return self.final
        return self.final + 0.5 * (self.peak - self.final) * (1 + math.cos(math.pi * done / span))


@dataclass(frozen=True)
class EpochCosine:
    """The fine-tuning rate: constant within an epoch, with a linear warm-up, then a cosine that counts from epoch 0.

    It is TransReID's schedule (He et al., arXiv 2102.04378). Because the cosine starts counting at epoch 0, the rate
    falls below the peak (to 0.933 × for 20 of 120 epochs) at the end of the warm-up. Rates are absolute: weights and
    biases share `start` and `floor` (0.01 × and 0.002 × the weights' rate) and differ in `peak`.

    Attributes:
        peak: Rate that the warm-up approaches, and from which the cosine would start at epoch 0.
        start: Rate of epoch 0 if there is a warm-up.
        floor: Rate at epoch `epochs` and after.
        epochs: Number of epochs of the whole run.
        warmup_epochs: Number of these epochs that are warm-up.
        steps_per_epoch: Number of optimizer steps in one epoch.
    """

    peak: float
    start: float
    floor: float
    epochs: int
    warmup_epochs: int
    steps_per_epoch: int = 1

    def __call__(self, step: int) -> float:
        """Return the rate at optimizer step `step`."""
        epoch = step // self.steps_per_epoch
        if epoch < self.warmup_epochs:
            return self.start + (self.peak - self.start) * epoch / self.warmup_epochs
        done = min(epoch / self.epochs, 1.0)
        return self.floor + 0.5 * (self.peak - self.floor) * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class EpochSteps:
    """A rate that is multiplied by `factor` after every `every` epochs and is constant within an epoch.

    It is the schedule of cluster contrast (Dai et al., arXiv 2103.11568): 0.1 × after every 20 of 50 epochs.
    """

    peak: float
    factor: float
    every: int
    steps_per_epoch: int = 1

    def __call__(self, step: int) -> float:
        """Return the rate at optimizer step `step`."""
        return self.peak * self.factor ** (step // self.steps_per_epoch // self.every)
