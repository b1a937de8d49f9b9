"""The guard of a training run: it ends where a loss or a gradient is not finite, and says where that came from."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayreid.training import parallel

_SHOWN = 8


class NonFiniteLossError(RuntimeError):
    """A loss or a gradient became NaN or infinite.

    Attributes:
        keys: all images of the micro-batches that did it, on the worker that had them.
    """

    def __init__(self, message: str, keys: Sequence[str]):
        super().__init__(message)
        self.keys = list(keys)


@dataclass(frozen=True)
class Part:
    """One worker's micro-batch: the keys of its images and their loss, a scalar."""

    keys: Sequence[str]
    loss: Tensor


def stop_unless_finite(
    step: int, parts: Sequence[Part], gradients: Sequence[Tensor], rates: Mapping[str, float], loss_scale: float
) -> None:
    """Stop every worker where any of them has a loss, or all of them a gradient, that is not finite.

    Args:
        step: the optimizer step, for the message.
        parts: this worker's micro-batches of the step.
        gradients: norms of the averaged gradients. Under a gradient scaler give none: it expects a gradient to
            overflow now and then, and skips that step.
        rates, loss_scale: what was in force, for the message.

    Raises:
        NonFiniteLossError: the same on every worker, by the first worker that had such a loss.
    """
    world, rank = parallel.world_size(), parallel.rank()
    losses = torch.stack([part.loss for part in parts])
    flags = torch.zeros(world + 1, device=losses.device)
    flags[rank] = (~torch.isfinite(losses).all()).float()
    for norm in gradients:
        flags[world] += (~torch.isfinite(norm)).float()
    *workers, gradient = parallel.all_reduce_sum(flags).tolist()
    where = [worker for worker, bad in enumerate(workers) if bad]
    if not where and not gradient:
        return
    at = ", ".join(f"{name} {value:.3g}" for name, value in [*rates.items(), ("loss scale", loss_scale)])
    report = _report(f"step {step}", parts, where, at)
    # The images that did it are known to the worker that had them: all raise what the first of those says.
    message, keys = json.loads(parallel.broadcast_text(json.dumps(report), where[0] if where else 0, losses.device))
    raise NonFiniteLossError(message, keys)


def _report(step: str, parts: Sequence[Part], where: Sequence[int], at: str) -> tuple[str, list[str]]:
    """The message of this worker, and the keys of its images that are to blame."""
    world = parallel.world_size()
    bad = [part for part in parts if not math.isfinite(part.loss.item())]
    if bad:
        what = (
            f"the loss is {bad[0].loss.item()} at {step}{f' on {len(where)} of {world} workers' if world > 1 else ''}"
        )
    else:
        # Which worker's it was cannot be told from their mean.
        mean = sum(part.loss.item() for part in parts) / len(parts)
        what = f"a gradient is not finite at {step}, though the loss is {mean:.4g}"
    keys = [key for part in bad or parts for key in part.keys]
    shown = ", ".join(keys[:_SHOWN]) + (f", … ({len(keys)} images)" if len(keys) > _SHOWN else "")
    return f"{what} ({at}); batch{f' of worker {parallel.rank()}' if world > 1 else ''}: {shown}", keys
