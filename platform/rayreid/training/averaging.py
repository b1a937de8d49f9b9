"""Averaging of gradients over the workers, bucket by bucket, while the backward pass is still computing others."""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from rayreid.training import parallel

BUCKET_BYTES = 25 * 2**20
"""Approximate size of the flat buffers in which gradients are sent: messages are few, and the first are sent early."""


class Averaging:
    """Replacement of every parameter's gradient by its mean over the workers, in place.

    Buckets hold parameters in reverse order, approximately the order in which a backward pass completes them. A bucket
    is sent when all its gradients are available and all earlier buckets have been sent, and therefore in the same order
    on every worker. The layout of a bucket never depends on which gradients exist: a parameter without one counts as
    zeros, and stays without one.

    A parameter that got no gradient in the last step (a frozen one) does not delay its bucket in the next. All flat
    buffers together take as much memory as the gradients.

    Args:
        parameters: The parameters, in the same order on every worker; the workers must also agree on which of them get
            gradients.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters) if parallel.world_size() > 1 else []
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        self._buckets = _buckets(trained[::-1])
        self._expected = set(map(id, trained))
        self._missing: list[int] = []
        self._sent: list[tuple[Tensor, dist.Work]] = []
        self._hooks: list[RemovableHandle] = []

    def begin(self) -> None:
        """Start to send each bucket as soon as it is complete; call it before a step's last backward pass."""
        awaited = [[p for p in bucket if id(p) in self._expected and p.requires_grad] for bucket in self._buckets]
        self._missing = list(map(len, awaited))
        for number, bucket in enumerate(awaited):
            for parameter in bucket:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(partial(self._arrived, number)))

    def finish(self) -> None:
        """Send the remaining buckets and wait for all means.

        Call it after a step's last backward pass, whether or not `begin` was called; without `begin` it sends all
        buckets.
        """
        while self._hooks:
            self._hooks.pop().remove()
        while len(self._sent) < len(self._buckets):
            self._send()
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            work.wait()
            self._receive(bucket, flat)
        self._sent.clear()
        sent = self._expected & {id(p) for bucket in self._buckets for p in bucket}
        self._expected = {id(p) for p in self._parameters if p.grad is not None}
        # Those without a gradient in the last step, and those that were frozen when the buckets were made.
        for bucket in _buckets(p for p in self._parameters if id(p) in self._expected - sent):
            flat = self._flat(bucket)
            dist.all_reduce(flat)
            self._receive(bucket, flat)

    def _arrived(self, number: int, parameter: Tensor) -> None:
        self._missing[number] -= 1
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        """Start the sum of the next bucket over the workers."""
        flat = self._flat(self._buckets[len(self._sent)])
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._sent.append((flat, work))

    def _flat(self, bucket: Sequence[Tensor]) -> Tensor:
        gradients = map(self._gradient, bucket)
        whole = (torch.zeros_like(p) if g is None else g for p, g in zip(bucket, gradients, strict=True))
        return torch.cat([gradient.reshape(-1) for gradient in whole])

    @torch.no_grad()
    def _receive(self, bucket: Sequence[Tensor], flat: Tensor) -> None:
        flat /= parallel.world_size()
        means = flat.split([parameter.numel() for parameter in bucket])
        pairs = [(g, mean) for p, mean in zip(bucket, means, strict=True) if (g := self._gradient(p)) is not None]
        if pairs:
            torch._foreach_copy_([g for g, _ in pairs], [mean.view(g.shape) for g, mean in pairs])

    def _gradient(self, parameter: Tensor) -> Tensor | None:
        return parameter.grad if id(parameter) in self._expected else None


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every parameter's gradient by its mean over the workers, in place, after the backward pass."""
    Averaging(parameters).finish()


def _buckets(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the parameters in groups of one dtype and device, in order, of at most `BUCKET_BYTES` (or one tensor)."""
    full: list[list[Tensor]] = []
    filling: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    filled: dict[tuple[torch.dtype, torch.device], int] = {}
    for parameter in parameters:
        kind = (parameter.dtype, parameter.device)
        size = parameter.numel() * parameter.element_size()
        if kind in filling and filled[kind] + size > BUCKET_BYTES:
            full.append(filling.pop(kind))
        if kind not in filling:
            filling[kind], filled[kind] = [], 0
        filling[kind].append(parameter)
        filled[kind] += size
    return full + list(filling.values())
