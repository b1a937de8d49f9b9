"""The optimisation loop that the whole project uses.

A *method* (DINO, supervised ReID, …) supplies the model, the optimizer, the schedules and the losses of a batch. The
loop supplies precision, accumulation, averaging over workers, the guard against non-finite losses, checkpoints, exact
resumption and throughput.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rayreid.training import parallel
from rayreid.training.averaging import Averaging
from rayreid.training.checkpoint import Checkpoints, restore
from rayreid.training.compilation import compiled
from rayreid.training.guard import Guard, Part
from rayreid.training.meter import Meter

Precision = Literal["fp32", "bf16", "fp16"]
WantedPrecision = Precision | Literal["auto"]


class Method(Protocol):
    """The interface of a method that the loop trains: an `nn.Module` whose state dict is complete for a checkpoint.

    Steps are optimizer steps, counted from 0 over the whole run.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return parameters and buffers."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore the result of `state_dict`."""

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer over the trained parameters."""

    def set_schedules(self, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
        """Set the rates for `step`; return those worth logging."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return scalars of one micro-batch; `loss` is differentiated, the others are logged."""

    def before_update(self, step: int) -> dict[str, Tensor]:
        """Clip or freeze; the gradients are complete and averaged over the workers.

        Returns:
            Scalars of the gradients to log, such as norms (before clipping, and left on the device). In fp32 and bf16,
            the run stops if one of them is not finite.
        """

    def after_update(self, step: int) -> None:
        """Update teachers, centres or queues; the parameters have been updated."""


@dataclass(frozen=True)
class Batch:
    """One worker's share of a micro-batch: the keys of the images, and the input of the method."""

    keys: Sequence[str]
    data: Any
    wait: float = 0.0
    """Seconds for which the loop waited for the batch."""


@dataclass(frozen=True)
class LoopSettings:
    """Settings of a run that do not belong to the method.

    Attributes:
        steps_per_epoch: Number of optimizer steps in an epoch. Epochs here only measure the length of the run; which
            images a step takes is up to the batches.
        epochs: Number of epochs; the run may end inside one.
        accumulate: Number of micro-batches per optimizer step.
        precision: Precision of the forward pass; parameters and optimizer stay float32 (or in the model's type).
        seed: With step and rank, it seeds torch's generator before every step, so that a resumed run draws the same
            numbers.
        log_every: Number of optimizer steps between logged rows.
        checkpoint_seconds: Longest time between two checkpoints; one is also written after every epoch.
        compile: Whether to compile the forward pass's `compilable` functions; the results agree except for rounding.
    """

    steps_per_epoch: int
    epochs: float
    accumulate: int = 1
    precision: Precision = "fp32"
    seed: int = 0
    log_every: int = 10
    checkpoint_seconds: float = 600.0
    compile: bool = False

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps of the whole run."""
        return round(self.steps_per_epoch * self.epochs)


def resolve_precision(wanted: WantedPrecision, device: torch.device) -> Precision:
    """Return the precision to train in.

    `auto` is bf16 where the device computes it natively. Elsewhere it is fp16 on a GPU (those older than Ampere), with
    a loss scaler, and fp32 on a CPU.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context in which a forward pass of that precision runs."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=kind, enabled=precision != "fp32")


def train(
    method: Method,
    batches: Callable[[int], Iterator[Batch]],
    settings: LoopSettings,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    log: Callable[[dict[str, float]], None] = lambda row: None,
    after_epoch: Callable[[float], dict[str, float]] | None = None,
) -> None:
    """Train a method from its newest checkpoint, or from the start, to the end.

    Args:
        method: The model and its training rules; already on `device`.
        batches: Function that yields micro-batches from a given optimizer step on.
        settings: Lengths, precision and seed.
        device: Device of the forward pass.
        checkpoints: Checkpoints to save to and resume from; only worker 0 writes.
        log: Receives rows with `step` (0-based, the last step in the row), `epoch` (fractional, done), `loss`, the
            method's scalars and rates, `images_per_second` (all workers), `wait` (share of time without data),
            `gpu_hours` (since the start, of all workers; 0 on CPUs), in fp16 `loss_scale` and, at an epoch's last step,
            `seconds_epoch`: the time since the epoch began or was resumed, including waits.
        after_epoch: Called on every worker after each epoch's last step and its checkpoint, with the number of epochs
            done, with 0 before the first step, and at the end of a run that ends inside an epoch. The scalars that it
            returns are logged as a separate row, with `epoch` and `step` (−1 before the first step). Its time does not
            count in the throughput. A run resumed at the end of an epoch calls it again for that epoch, because it may
            have been interrupted.

    Raises:
        NonFiniteLossError: On every worker, for a step with a non-finite loss on any of them; in fp32 and bf16 also for
            a gradient. On a GPU it is detected while the next step runs; neither step is logged or saved.
        UserError: A checkpoint belongs to another architecture, or is not on storage that all workers share.
    """
    optimizer = method.build_optimizer()
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    run = LoopState(method, optimizer, scaler, settings, device, checkpoints, log, after_epoch)
    start = run.resume()
    run.end_epoch(start)
    stream = batches(start)
    for step in range(start, settings.steps):
        run.step(step, stream)
        run.end_epoch(step + 1)


class LoopState:
    """The state of one run of the loop."""

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        settings: LoopSettings,
        device: torch.device,
        checkpoints: Checkpoints | None,
        log: Callable[[dict[str, float]], None],
        after_epoch: Callable[[float], dict[str, float]] | None,
    ):
        self.method, self.optimizer, self.scaler = method, optimizer, scaler
        self.settings, self.device, self.checkpoints = settings, device, checkpoints
        self.log, self.after_epoch = log, after_epoch
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.averaging = Averaging(self.parameters)
        self.guard = Guard()
        self.meter = Meter(parallel.world_size() if device.type == "cuda" else 0)
        self.saved_at = self.epoch_began = time.monotonic()

    def resume(self) -> int:
        """Resume from the newest checkpoint that is intact for worker 0, and return its step.

        If each worker chose for itself, they might not agree.
        """
        if self.checkpoints is None:
            return 0
        newest = self.checkpoints.newest() if parallel.rank() == 0 else 0
        step = int(parallel.broadcast(torch.tensor(newest, device=self.device)))
        if step == 0:
            return 0
        state = self.checkpoints.load(step, self.device)
        restore(self.method, state["method"], self.checkpoints.folder)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.meter.spent = state["seconds"]
        return int(state["step"])

    def step(self, step: int, stream: Iterator[Batch]) -> None:
        """Make one optimizer step, log it, and write a checkpoint if one is due."""
        torch.manual_seed(_step_seed(self.settings.seed, step))
        rates = self.method.set_schedules(self.optimizer, step)
        loss_scale = self.scaler.get_scale()
        scalars: dict[str, Tensor] = {}
        parts: list[Part] = []
        for left in reversed(range(self.settings.accumulate)):
            batch = next(stream)
            self.meter.count(len(batch.keys) * parallel.world_size(), batch.wait)
            losses = self._differentiate(batch, last=not left)
            parts.append(Part(batch.keys, losses["loss"]))
            scalars = {name: scalars.get(name, 0) + value for name, value in losses.items()}
        gradients = self._update(step)
        watched = () if self.scaler.is_enabled() else tuple(gradients.values())
        self.guard.settle()
        self.guard.watch(step, parts, watched, rates, loss_scale)
        if not self._deferred or self._ends_epoch(step):
            self.guard.settle()
        mean = {name: value / self.settings.accumulate for name, value in scalars.items()}
        if parallel.rank() == 0:
            self._log(step, {**mean, **gradients}, {**rates, **self._scale()})
            self._save(step + 1)

    @property
    def _deferred(self) -> bool:
        """Whether the guard reads a step's flags while the next one runs."""
        return self.device.type == "cuda"

    def _ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends with this step, or the run, which may end inside one."""
        return (step + 1) % self.settings.steps_per_epoch == 0 or step + 1 == self.settings.steps

    def end_epoch(self, done: int) -> None:
        """Call `after_epoch` and log its scalars, if an epoch or the run ends after `done` steps."""
        if not self._ends_epoch(done - 1):
            return
        if self.after_epoch is not None:
            epochs = done / self.settings.steps_per_epoch
            scalars = self.after_epoch(epochs)
            if scalars and parallel.rank() == 0:
                self.log({"step": done - 1, "epoch": epochs, **scalars})
            self.meter.restart()
        self.epoch_began = time.monotonic()

    def _differentiate(self, batch: Batch, last: bool) -> dict[str, Tensor]:
        with autocast(self.settings.precision, self.device), compiled(self.settings.compile):
            losses = self.method.losses(batch.data)
        if last:
            self.averaging.begin()
        self.scaler.scale(losses["loss"] / self.settings.accumulate).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _update(self, step: int) -> dict[str, Tensor]:
        self.averaging.finish()
        self.scaler.unscale_(self.optimizer)
        gradients = self.method.before_update(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_update(step)
        return gradients

    def _scale(self) -> dict[str, float]:
        return {"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}

    def _log(self, step: int, scalars: dict[str, Tensor], rates: dict[str, float]) -> None:
        done, epoch_end = step + 1, self._ends_epoch(step)
        if (done % self.settings.log_every and not epoch_end) or not self.guard.clean():
            return
        values = {name: float(value) for name, value in scalars.items()}
        # In fp16 a gradient may have overflowed: the scaler skipped that step, and there is no norm to show.
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        progress = {"step": step, "epoch": done / self.settings.steps_per_epoch}
        duration = {"seconds_epoch": time.monotonic() - self.epoch_began} if epoch_end else {}
        self.log({**progress, **finite, **rates, **self.meter.read(), **duration})

    def _save(self, done: int) -> None:
        epoch, within = divmod(done, self.settings.steps_per_epoch)
        due = self._ends_epoch(done - 1) or time.monotonic() - self.saved_at > self.settings.checkpoint_seconds
        if self.checkpoints is None or not due or not self.guard.clean():
            return
        state = {
            "step": done,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "seconds": self.meter.seconds(),
        }
        self.checkpoints.save(done, state, epoch=None if within else epoch)
        self.saved_at = time.monotonic()


def _step_seed(seed: int, step: int) -> int:
    """Return the seed of drop path and similar draws: different for every step and worker, the same after a restart."""
    return ((seed * 1_000_003 + step) * 65_537 + parallel.rank()) % 2**63  # the range that torch accepts
