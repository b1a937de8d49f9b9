"""Normalisation layers: batch norm synchronised over workers, and IBN (instance norm and batch norm)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose training statistics cover the batches of all `torch.distributed` workers together.

    With one worker, or in eval mode, it equals `nn.BatchNorm2d`. `torch.nn.SyncBatchNorm` refuses to run on CPU; this
    layer runs wherever the process group does (gloo or NCCL). It accepts (B, C), (B, C, L) and (B, C, H, W); the
    workers' batches may differ in size. Gradients to the input are those of the *sum* of the workers' losses. Gradients
    to weight and bias are the worker's own share, which the training loop averages with all others.

    Attributes:
        synchronised: Whether statistics cover all workers; False: only the worker's own batch (see `set_synchronised`).
    """

    synchronised = True

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C, ...) normalised per channel, with the same shape and dtype."""
        if not (self.training and self.synchronised and _workers() > 1):
            return super().forward(input)
        self._check_input_dim(input)
        mean, var, count = _global_moments(input.detach())
        if self.track_running_stats:
            self._update_running(mean, var, count)
        precise = torch.float64 if input.dtype == torch.float64 else torch.float32
        invstd = (var + self.eps).rsqrt().to(precise)
        out: Tensor = _Normalise.apply(input, self.weight, self.bias, mean.to(precise), invstd, count.to(precise))
        return out

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # momentum None means a cumulative average, as in nn.BatchNorm2d
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = var * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)


class IBN(nn.Module):
    """Instance norm (affine) on the first half of the channels, batch norm on the rest (Pan et al. 2018).

    Its parts are named `IN` and `BN`, as in the published checkpoints.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = channels // 2
        self.IN = nn.InstanceNorm2d(self.split, affine=True)
        self.BN = SyncedBatchNorm(channels - self.split)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) normalised, with the same shape."""
        first, rest = x[:, : self.split], x[:, self.split :]
        if torch.compiler.is_compiling():
            return torch.cat([_instance_norm(first, self.IN), self.BN(rest)], dim=1)
        return torch.cat([self.IN(first.contiguous()), self.BN(rest.contiguous())], dim=1)


def _instance_norm(x: Tensor, norm: nn.InstanceNorm2d) -> Tensor:
    """Return `norm(x)`, written out.

    A compiler then keeps the memory format, whereas it turns `norm` into a batch norm in another format and back.
    """
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(precise, (2, 3), correction=0, keepdim=True)
    unit = (precise - mean) * (var + norm.eps).rsqrt()
    return (unit * _per_channel(norm.weight, x) + _per_channel(norm.bias, x)).to(x.dtype)


def set_synchronised(module: nn.Module, enabled: bool) -> None:
    """Switch the synchronisation of every batch norm below `module` (fine-tuning takes statistics per worker)."""
    for layer in module.modules():
        if isinstance(layer, SyncedBatchNorm):
            layer.synchronised = enabled


def _workers() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,), biased variance (C,) and number of values per channel () over all workers, float64.

    Each worker computes its own moments in a stable two-pass way. Only their combination uses sums of squares, in
    float64, so that a mean far from zero costs no digits. It takes one all-reduce of 2C + 1 numbers.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    var, mean = (moment.double() for moment in torch.var_mean(x, _reduced(x), correction=0))
    channels = x.shape[1]
    count = torch.full((1,), x.numel() // channels, dtype=torch.float64, device=x.device)
    packed = torch.cat([mean * count, (var + mean.square()) * count, count])
    dist.all_reduce(packed)
    count = packed[-1]
    mean = packed[:channels] / count
    var = (packed[channels:-1] / count - mean.square()).clamp_min(0)
    return mean, var, count


def _reduced(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


class _Normalise(torch.autograd.Function):
    """weight · (x − mean) · invstd + bias, where mean and invstd are statistics over the x of all workers.

    Backward (Ioffe & Szegedy 2015, section 3, with the sums over all workers):
    dx = weight · invstd · (dy − Σdy / N − x̂ · Σ(dy · x̂) / N).
    A separate Function keeps only x for backward, where autograd would keep every intermediate map.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        count: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, invstd, count)
        scale = invstd if weight is None else invstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return torch.addcmul(_per_channel(shift, x), x.to(scale.dtype), _per_channel(scale, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, count = ctx.saved_tensors
        dy = grad_outputs[0].to(invstd.dtype)
        x_hat = (x.to(invstd.dtype) - _per_channel(mean, x)) * _per_channel(invstd, x)
        own = torch.stack([dy.sum(_reduced(x)), (dy * x_hat).sum(_reduced(x))])
        total = own.clone()
        dist.all_reduce(total)
        mean_dy, mean_dy_x_hat = (_per_channel(row, x) for row in total / count)
        scale = invstd if weight is None else invstd * weight
        dx = _per_channel(scale, x) * (dy - mean_dy - x_hat * mean_dy_x_hat)
        d_bias, d_weight = (None, None) if weight is None else own.to(weight.dtype)
        return dx.to(x.dtype), d_weight, d_bias, None, None, None
