"""The projection head of DINO: from a backbone's feature to prototype logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """Linear map without bias, its rows of length g: W_k = g_k · v_k / ‖v_k‖ (arXiv 1602.07868, equation 2).

    Written out, so that the published state names hold (`weight_g` (K, 1), `weight_v` (K, D)) and any float
    type works. The gain is fixed at 1 (DINO's `norm_last_layer`): it gets no gradient, and the logits of a
    unit vector are cosines.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=False)
        # nn.Linear's own start, as published; its length matters: it sets how far one AdamW step turns a row
        self.weight_v = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach().clone())

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) → logits (N, K), in the weights' own precision even under autocast.

        The softmax that follows divides by a temperature of 0.04: bfloat16 rounds a cosine by up to 0.002,
        which would be 0.05 of a logit.
        """
        with torch.autocast(x_ND.device.type, enabled=False):
            weight_KD = torch._weight_norm(self.weight_v, self.weight_g, 0)  # fused; as torch's own weight norm
            return F.linear(x_ND.to(weight_KD.dtype), weight_KD)


class DINOHead(nn.Module):
    """Three-layer MLP with GELU, L2 normalisation, weight-normed linear map (arXiv 2104.14294, appendix C).

    Args:
        in_dim: width D of the backbone's feature.
        out_dim: number of prototypes K.
        hidden_dim: width of the two hidden layers.
        bottleneck_dim: width of the normalised vector before the last layer.
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
        """Features (N, D) → logits (N, K), cosines in [−1, 1] while the gain is 1."""
        bottleneck = self.mlp(x_ND)
        unit: Tensor = F.normalize(bottleneck.to(self.last_layer.weight_v.dtype), dim=-1)
        logits: Tensor = self.last_layer(unit)
        return logits
