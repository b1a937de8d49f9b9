"""MoCo v3 as a method of the training loop."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rayreid.models.backbones import Backbone, ViT
from rayreid.pretraining.contrast import contrast_batch
from rayreid.pretraining.momentum import Encoder, MomentumMethod, Rates, logged
from rayreid.pretraining.projector import mlp, projected


class MoCoV3(MomentumMethod):
    """Momentum contrast without a queue (Chen, Xie, He, arXiv 2104.02057, section 3, algorithm 1).

    There are two views of every image. The predictor's output of one view is contrasted with the momentum encoder's
    output of the other view, against those of all other images in the batch, in both directions, each × 2τ. Batch norm
    takes its statistics per view, over all workers. AdamW decays every parameter, LARS (ResNet-50) only matrices, as
    published.

    Deviations:

    - The position embedding is learned, as everywhere here (the paper's is a fixed sine and cosine; section 5.3 finds
      76.1 against 76.5), and ViT's matrices are initialised as in timm (the paper: Xavier uniform).
    - The augmentation is this project's: two global crops with the paper's asymmetric blur and solarizing, but with a
      scale of 0.4–1 (paper: 0.2–1) and bicubic interpolation.
    - With gradient accumulation, the negatives are those of a micro-batch.
    - LARS divides by ‖g‖ + λ‖w‖ (You et al., arXiv 1708.03888, equation 6), the public code by ‖g + λw‖.

    Args:
        backbone: Trained network (B, 3, H, W) → (B, W) with `num_features` = W.
        momentum_backbone: The same network; overwritten with its weights.
        rates: Optimizer and schedules, see `Rates`.
        layers: Number of layers of the projector, 3 for ViT and 2 for ResNet-50 (section 4 and appendix).
        hidden_dim: Hidden dimension of projector and predictor.
        out_dim: Output dimension of projector and predictor.
        temperature: τ, 0.2 for ViT and 1 for ResNet-50.
        frozen: Part of `backbone` that keeps its weights; see `patch_projection`.
    """

    def __init__(
        self,
        backbone: Backbone,
        momentum_backbone: Backbone,
        rates: Rates,
        *,
        layers: int = 3,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        temperature: float = 0.2,
        frozen: nn.Module | None = None,
    ) -> None:
        widths = (backbone.num_features, *[hidden_dim] * (layers - 1), out_dim)
        base, momentum = (
            Encoder(side, mlp(widths, hidden_norm=True, last_norm=True)) for side in (backbone, momentum_backbone)
        )
        super().__init__(base, momentum, rates, decay_all=rates.optimizer == "adamw")
        self.predictor = mlp((out_dim, hidden_dim, out_dim), hidden_norm=True, last_norm=True)
        self.temperature = temperature
        if frozen is not None:
            frozen.requires_grad_(False)

    def losses(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the losses of one micro-batch of B images, two views each: (2B, 3, H, W), view-major; see `logged`."""
        views = batch[0].chunk(2)
        q1, q2 = (projected(self.predictor, self.base(view)[1]) for view in views)
        with torch.no_grad():
            (f1, k1), (f2, k2) = (self.momentum(view) for view in views)
        directions = [contrast_batch(q1, k2, self.temperature), contrast_batch(q2, k1, self.temperature)]
        loss = 2 * self.temperature * (directions[0].loss + directions[1].loss)
        return logged(loss, directions, torch.cat([f1, f2]))


def patch_projection(vit: ViT, fresh: bool) -> nn.Module:
    """Return the part of a ViT that MoCo v3 keeps at its initial values: the patch projection (section 4.2).

    The paper finds that instability begins in the gradient of the first layer, and keeps a patchify stem random: a
    projection of 768 values to an embedding of similar width loses little. In the stems `conv` and `ics` that layer is
    not the first, and random convolutions with ReLU between them would lose much. The public code freezes nothing of a
    convolutional stem, nor does `freeze_patch: auto` here; `true` freezes its last projection, `patch_embed.proj`.

    Args:
        vit: A ViT of `rayreid.models.backbones`.
        fresh: Whether to initialise it again, Xavier uniform with a bias of 0, as published; False keeps weights that
            were loaded.
    """
    projection = cast(nn.Conv2d, vit.patch_embed.proj)
    if fresh:
        with torch.no_grad():
            nn.init.xavier_uniform_(projection.weight.flatten(1))
            nn.init.zeros_(cast(Tensor, projection.bias))
    return projection
