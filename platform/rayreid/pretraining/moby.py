"""MoBY as a method of the training loop."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rayreid.models.backbones import Backbone
from rayreid.pretraining.contrast import Queue, contrast_queue
from rayreid.pretraining.momentum import Encoder, MomentumMethod, Rates, logged
from rayreid.pretraining.projector import mlp, projected


class MoBY(MomentumMethod):
    """MoCo v2 and BYOL combined, for Transformers (Xie et al., arXiv 2105.04553, section 3, algorithm 1).

    The predictor's output of each view is contrasted with the momentum encoder's output of the other view, against a
    queue of keys of that other view: two directions, two queues. Drop path is in the trained backbone only. All
    gradients are clipped together. Batch norm takes its statistics per view, over all workers.

    Deviations:

    - Only biases and 1-D parameters have no weight decay; in the public code, class token, position embedding and
      Swin's table of relative positions have none either.
    - Hidden layers have no bias before their batch norm, which would cancel it.
    - The augmentation is this project's: two global crops with the paper's asymmetric blur and solarizing, but with a
      scale of 0.4–1 (public code: 0.08–1) and bicubic interpolation.
    - The warm-up starts at 0 (published 5e-7), and the final rate 5e-6 is not scaled with the batch.
    - Keys enter the queues once per optimizer step, at its end.

    Args:
        backbone: Trained network (B, 3, H, W) → (B, W) with `num_features` = W; the one with drop path.
        momentum_backbone: The same network without drop path; overwritten with its weights.
        rates: Optimizer and schedules, see `Rates`.
        hidden_dim: Hidden dimension of projector and predictor.
        out_dim: Output dimension of projector and predictor.
        temperature: τ.
        queue: Number of keys in each queue.
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
        """Return the losses of one micro-batch of B images, two views each: (2B, 3, H, W), view-major; see `logged`."""
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
