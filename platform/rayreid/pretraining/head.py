"""The projection head of DINO, from a backbone's feature to prototype logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayreid.devices import tf32
from rayreid.training.compilation import compilable


class WeightNormLinear(nn.Module):
    """Linear map without bias, with rows of length g: W_k = g_k · v_k / ‖v_k‖ (arXiv 1602.07868, equation 2).

    It is written out so that the published state names hold (`weight_g` (K, 1), `weight_v` (K, D)) and any float type
    works. The gain is fixed at 1 (DINO's `norm_last_layer`): it gets no gradient, and the logits of a unit vector are
    cosines.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=False)
        # The initial values of nn.Linear, as published. Their length matters: it sets how far one AdamW step turns a
        # row.
        self.weight_v = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach().clone())

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return logits (N, K) of (N, D), in the weights' own precision even under autocast.

        The softmax that follows divides by a temperature of 0.04: bfloat16 rounds a cosine by up to 0.002, which would
        be 0.05 of a logit.
        """
        mixed = torch.is_autocast_enabled(x_ND.device.type)
        with torch.autocast(x_ND.device.type, enabled=False):
            weight_KD = torch._weight_norm(self.weight_v, self.weight_g, 0)  # fused; same as torch's own weight norm
            x_ND = x_ND.to(weight_KD.dtype)
            logits: Tensor = _TF32Linear.apply(x_ND, weight_KD) if mixed and x_ND.is_cuda else F.linear(x_ND, weight_KD)
            return logits


class _TF32Linear(torch.autograd.Function):
    """`F.linear` of float32 on a GPU's TF32 units, forward and backward, in a sixth of the time.

    TF32 keeps ten bits of a factor's mantissa. It changes a cosine of 256 terms by some 3e-5, a thousandth of a logit
    at temperature 0.04. If the forward pass runs in float32 throughout, this one does too.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_KD: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_KD)
        with tf32(True):
            return x_ND @ weight_KD.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_ND, weight_KD = ctx.saved_tensors
        (dy_NK,) = gradients
        with tf32(True):
            dx = dy_NK @ weight_KD if ctx.needs_input_grad[0] else None
            return dx, dy_NK.T @ x_ND if ctx.needs_input_grad[1] else None


class DINOHead(nn.Module):
    """Three-layer MLP with GELU, L2 normalisation and a weight-normed linear map (arXiv 2104.14294, appendix C).

    Args:
        in_dim: Width D of the backbone's feature.
        out_dim: Number of prototypes K.
        hidden_dim: Width of the two hidden layers.
        bottleneck_dim: Width of the normalised vector before the last layer.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int = 2048, bottleneck_dim: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return logits (N, K) of features (N, D); they are cosines in [−1, 1] while the gain is 1."""
        logits: Tensor = self.last_layer(_bottleneck(self.mlp, x_ND, self.last_layer.weight_v.dtype))
        return logits


@compilable
def _bottleneck(mlp: nn.Module, x_ND: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the vector before the last layer, of length 1."""
    return F.normalize(mlp(x_ND).to(dtype), dim=-1)
