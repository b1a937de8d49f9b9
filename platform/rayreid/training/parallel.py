"""Collective operations between workers. Each is a no-op without an initialised process group.

Workers hold full copies of the model and draw their share of each global batch. Gradients are averaged once per
optimizer step (`averaging`). The model needs no wrapper for that, so state names stay plain and gradient accumulation
costs nothing.
"""

import torch
import torch.distributed as dist

# Its functions' defaults are the group that there is when it is first imported: an optimizer's first step imports it,
# and the group would then outlive `destroy_process_group`, its threads abort at the interpreter's end. Import it here.
import torch.distributed.nn.functional
from torch import Tensor, nn


def initialised() -> bool:
    """Return whether this process belongs to a group of workers."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of workers; 1 without a process group."""
    return dist.get_world_size() if initialised() else 1


def rank() -> int:
    """Return this worker's number, from 0; 0 without a process group."""
    return dist.get_rank() if initialised() else 0


@torch.no_grad()
def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all workers, in place, outside the autograd graph, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def broadcast(tensor: Tensor, source: int = 0) -> Tensor:
    """Overwrite `tensor` on every worker with that of worker `source`, in place, and return it."""
    if world_size() > 1:
        dist.broadcast(tensor, source)
    return tensor


def broadcast_buffers(module: nn.Module, source: int = 0) -> None:
    """Overwrite a module's floating-point buffers (running statistics) on all workers with those of worker `source`."""
    for buffer in module.buffers():
        if buffer.is_floating_point():
            broadcast(buffer, source)


def broadcast_text(text: str, source: int, device: torch.device) -> str:
    """Return the text of worker `source` on every worker; `device` is one that the process group supports."""
    boxed = [text]
    if world_size() > 1:
        dist.broadcast_object_list(boxed, source, device=device)
    return boxed[0]


def gather_texts(text: str, device: torch.device) -> list[str]:
    """Return the texts of all workers in order of rank; `device` is one that the process group supports."""
    if world_size() == 1:
        return [text]
    return [broadcast_text(text, source, device) for source in range(world_size())]


class _AllReduceSum(torch.autograd.Function):
    """y = Σ_r x_r on every worker; each x_r receives the sum of the workers' gradients to y."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        return all_reduce_sum(gradients[0].clone(memory_format=torch.contiguous_format))


def differentiable_all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum over all workers. Gradients flow through it; they are summed over the workers as well.

    It works over gloo and NCCL. Every worker must call it, and run backward through it, in the same order.
    """
    return _AllReduceSum.apply(tensor) if world_size() > 1 else tensor


def gather_rows(tensor: Tensor) -> Tensor:
    """Return all workers' rows in order of rank: (B, …) → (world·B, …), differentiable; B is equal on all workers.

    A loss that every worker computes on the gathered rows is the same everywhere. Its gradient to a worker's own rows
    arrives multiplied by the number of workers, which `average_gradients` divides out again.
    """
    if world_size() == 1:
        return tensor
    slots = torch.arange(world_size(), device=tensor.device) == rank()
    placed = slots.view(-1, *[1] * tensor.dim()) * tensor.unsqueeze(0)
    return differentiable_all_reduce(placed).flatten(0, 1)
