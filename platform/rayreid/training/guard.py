"""The guard of a training run, which stops it if a loss or a gradient is not finite, and reports the cause."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayreid.training import parallel

_SHOWN = 8


class NonFiniteLossError(RuntimeError):
    """An error for a loss or a gradient that became NaN or infinite.

    Attributes:
        keys: All images of the micro-batches that caused it, on the worker that had them.
    """

    def __init__(self, message: str, keys: Sequence[str]):
        super().__init__(message)
        self.keys = list(keys)


@dataclass(frozen=True)
class Part:
    """One worker's micro-batch: the keys of its images and their loss, a scalar."""

    keys: Sequence[str]
    loss: Tensor


@dataclass(frozen=True)
class _Watched:
    """An optimizer step whose numbers the device may still be computing.

    Attributes:
        step: The optimizer step.
        parts: This worker's micro-batches of the step.
        rates: The rates in force.
        loss_scale: The loss scale in force.
        flags: Number of non-finite losses of each worker, then the number of non-finite gradients, (workers + 1,); on
            the host.
        copied: Event recorded after the copy of the flags; None if the copy was synchronous.
    """

    step: int
    parts: Sequence[Part]
    rates: Mapping[str, float]
    loss_scale: float
    flags: Tensor
    copied: torch.cuda.Event | None

    def bad(self) -> tuple[list[int], bool]:
        """Return the workers with a non-finite loss, and whether a gradient is non-finite; waits for the device."""
        if self.copied is not None:
            self.copied.synchronize()
        *workers, gradient = self.flags.tolist()
        return [worker for worker, count in enumerate(workers) if count], bool(gradient)


class Guard:
    """A guard that stops a run on all workers if a loss of any worker, or a gradient of all, is not finite.

    On a GPU, nothing waits for the step that was just queued: its flags are read after the next one is queued. One more
    step may therefore be made before the run stops, but nothing of it is kept, because callers ask `clean` before they
    log or save.
    """

    def __init__(self) -> None:
        self._watched: _Watched | None = None

    def watch(
        self,
        step: int,
        parts: Sequence[Part],
        gradients: Sequence[Tensor],
        rates: Mapping[str, float],
        loss_scale: float,
    ) -> None:
        """Start to watch an optimizer step; `settle` the previous one first. All workers call it.

        Args:
            step: The optimizer step, for the message.
            parts: This worker's micro-batches of the step.
            gradients: Norms of the averaged gradients. With a gradient scaler, give none: it expects a gradient to
                overflow now and then, and skips that step.
            rates: The rates in force, for the message.
            loss_scale: The loss scale in force, for the message.
        """
        losses = torch.stack([part.loss for part in parts])
        flags = torch.zeros(parallel.world_size() + 1, device=losses.device)
        flags[parallel.rank()] = (~torch.isfinite(losses)).sum()
        flags[-1] = sum((~torch.isfinite(norm)).float() for norm in gradients)
        parallel.all_reduce_sum(flags)
        copied = None
        if flags.is_cuda:
            flags = torch.empty(flags.shape, pin_memory=True).copy_(flags, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._watched = _Watched(step, parts, rates, loss_scale, flags, copied)

    def clean(self) -> bool:
        """Return whether the watched step is finite everywhere; waits for the device, but for no other worker."""
        return self._watched is None or self._watched.bad() == ([], False)

    def settle(self) -> None:
        """Raise an error unless the watched step is finite everywhere; all workers call it at the same place.

        Raises:
            NonFiniteLossError: The same on every worker, from the first worker with a non-finite loss.
        """
        watched, self._watched = self._watched, None
        if watched is None:
            return
        where, gradient = watched.bad()
        if not where and not gradient:
            return
        rates = [*watched.rates.items(), ("loss scale", watched.loss_scale)]
        at = ", ".join(f"{name} {value:.3g}" for name, value in rates)
        report = _report(f"step {watched.step}", watched.parts, where, at)
        # Only the worker that had the images knows them, so all workers raise the error of the first such worker.
        device = watched.parts[0].loss.device
        message, keys = json.loads(parallel.broadcast_text(json.dumps(report), where[0] if where else 0, device))
        raise NonFiniteLossError(message, keys)


def _report(step: str, parts: Sequence[Part], where: Sequence[int], at: str) -> tuple[str, list[str]]:
    """Return this worker's message, and the keys of its images that caused the failure."""
    world = parallel.world_size()
    bad = [part for part in parts if not math.isfinite(part.loss.item())]
    if bad:
        what = (
            f"the loss is {bad[0].loss.item()} at {step}{f' on {len(where)} of {world} workers' if world > 1 else ''}"
        )
    else:
        # The mean of the gradients does not reveal which worker's gradient was not finite.
        mean = sum(part.loss.item() for part in parts) / len(parts)
        what = f"a gradient is not finite at {step}, though the loss is {mean:.4g}"
    keys = [key for part in bad or parts for key in part.keys]
    shown = ", ".join(keys[:_SHOWN]) + (f", … ({len(keys)} images)" if len(keys) > _SHOWN else "")
    return f"{what} ({at}); batch{f' of worker {parallel.rank()}' if world > 1 else ''}: {shown}", keys
