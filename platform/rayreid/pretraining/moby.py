"""MoBY as a method of the training loop."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rayreid.models.backbones import Backbone
from rayreid.pretraining.contrast import Queue, contrast_queue
from rayreid.pretraining.momentum import Encoder, MomentumMethod, Rates, logged
from rayreid.pretraining.projector import mlp, projected


class MoBY(MomentumMethod):
    """MoCo v2 and BYOL together, for Transformers (Xie et al., arXiv 2105.04553, section 3, algorithm 1).

    Either view's predictor output is contrasted with the momentum encoder's output of the other, against a queue of
    keys of that other view: two directions, two queues. Drop path is in the trained backbone only. All gradients
    together are clipped. Batch norm takes its statistics per view, over all workers.

    Deviations:

    - Weight decay spares biases and 1-D parameters only; the public code also spares class token and position
      embedding, and Swin's table of relative positions.
    - Hidden layers have no bias beside their batch norm, which would take it away again.
    - The augmentation is this project's: two global crops with the paper's asymmetric blur and solarizing, but with a
      scale of 0.4–1 (public code: 0.08–1) and bicubic.
    - The warm-up starts at 0 (published 5e-7), the final rate 5e-6 is not scaled with the batch.
    - Keys enter the queues once per optimizer step, at its end.

    Args:
        backbone: network (B, 3, H, W) → (B, W) with `num_features` = W; trained; the one with drop path.
        momentum_backbone: the same network without drop path; overwritten with its weights.
        rates: see there.
        hidden_dim, out_dim: of projector and predictor.
        temperature: τ.
        queue: number of keys in either queue.
    """

    def __init__(
        self,
        backbone: Backbone,
        momentum_backbone: Backbone,
        rates: Rates,
        *,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        temperature: float = 0.2,
        queue: int = 4096,
    ) -> None:
        widths = (backbone.num_features, hidden_dim, out_dim)
        base, momentum = (
            Encoder(side, mlp(widths, hidden_norm=True, last_norm=False)) for side in (backbone, momentum_backbone)
        )
        super().__init__(base, momentum, rates)
        self.predictor = mlp((out_dim, hidden_dim, out_dim), hidden_norm=True, last_norm=False)
        self.queue1, self.queue2 = Queue(queue, out_dim), Queue(queue, out_dim)
        self.temperature = temperature

    def losses(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Losses of one micro-batch of B images, two views each: (2B, 3, H, W), view-major; see `logged`."""
        views = batch[0].chunk(2)
        q1, q2 = (projected(self.predictor, self.base(view)[1]) for view in views)
        with torch.no_grad():
            (f1, k1), (f2, k2) = (self.momentum(view) for view in views)
        directions = [
            contrast_queue(q1, k2, self.queue2, self.temperature),
            contrast_queue(q2, k1, self.queue1, self.temperature),
        ]
        self.queue1.add(k1)
        self.queue2.add(k2)
        return logged(directions[0].loss + directions[1].loss, directions, torch.cat([f1, f2]))
