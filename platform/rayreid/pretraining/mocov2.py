"""MoCo v2 as a method of the training loop."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rayreid.models.backbones import Backbone
from rayreid.pretraining.contrast import Queue, contrast_queue
from rayreid.pretraining.momentum import Encoder, MomentumMethod, Rates, logged
from rayreid.pretraining.projector import mlp


class MoCoV2(MomentumMethod):
    """Momentum contrast with a queue (He et al., arXiv 1911.05722, algorithm 1) and an MLP head (arXiv 2003.04297).

    The first view of every image is the query, the second its key; the negatives are the keys of earlier batches. SGD
    decays every parameter, as published. The momentum is constant.

    Deviations:

    - Batch norm is synchronised over workers on both sides, instead of shuffling the keys between workers (section
      3.3), so that the number of workers changes nothing. It is weaker: a query and its key share the statistics of
      their batch, which no key in the queue has. With shuffling over w workers they share 1/w of the images.
    - The augmentation is this project's, DINO's two global crops (blur 1.0 and 0.1, solarize 0 and 0.2, saturation 0.2,
      scale 0.4–1), not that of arXiv 2003.04297 (blur 0.5 on both, no solarizing, saturation 0.4, scale 0.2–1).
    - The learning rate falls by step, not by epoch, and a warm-up is possible (published: none).
    - Keys enter the queue once per optimizer step, at its end.

    Args:
        backbone: Trained network (B, 3, H, W) → (B, W) with `num_features` = W.
        momentum_backbone: The same network; overwritten with its weights.
        rates: Optimizer and schedules, see `Rates`.
        hidden_dim: Hidden dimension of the head (published: the backbone's width).
        out_dim: Output dimension of the head (published: 128).
        temperature: τ.
        queue: Number of keys in the queue.
    """

    def __init__(
        self,
        backbone: Backbone,
        momentum_backbone: Backbone,
        rates: Rates,
        *,
        hidden_dim: int = 2048,
        out_dim: int = 128,
        temperature: float = 0.2,
        queue: int = 65536,
    ) -> None:
        widths = (backbone.num_features, hidden_dim, out_dim)
        base, momentum = (
            Encoder(side, mlp(widths, hidden_norm=False, last_norm=False)) for side in (backbone, momentum_backbone)
        )
        super().__init__(base, momentum, rates, decay_all=True)
        self.queue = Queue(queue, out_dim)
        self.temperature = temperature

    def losses(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the losses of one micro-batch of B images, two views each: (2B, 3, H, W), view-major; see `logged`."""
        first, second = batch[0].chunk(2)
        _, q = self.base(first)
        with torch.no_grad():
            features, k = self.momentum(second)
        contrast = contrast_queue(q, k, self.queue, self.temperature)
        self.queue.add(k)
        return logged(contrast.loss, [contrast], features)
