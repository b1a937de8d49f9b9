"""Contrastive losses: InfoNCE against the other images of a batch, or against a queue of earlier keys."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayreid.training.parallel import gather_rows, rank


class Contrast(NamedTuple):
    """A loss in nats, and the share of queries (detached) that are nearer to their own key than to any other."""

    loss: Tensor
    accuracy: Tensor


def contrast_batch(queries: Tensor, keys: Tensor, temperature: float) -> Contrast:
    """Return InfoNCE with the other images' keys of the same view, over all workers, as negatives.

    It is the mean over *i* of −log(exp(q_i·k_i/τ) / Σ_j exp(q_i·k_j/τ)), with q and k of length 1 (van den Oord et al.,
    arXiv 1807.03748, equation 4; MoCo v3, arXiv 2104.02057, equation 1). No gradient flows to the keys.

    Args:
        queries: (B, D), this worker's queries.
        keys: (B, D), keys of the same images; B is the same on every worker.
        temperature: τ.
    """
    q_BD, k_ND = _unit(queries), gather_rows(_unit(keys.detach()))
    own = torch.arange(len(q_BD), device=q_BD.device) + rank() * len(q_BD)
    return _contrast(_similarities(q_BD, k_ND), own, temperature)


def contrast_queue(queries: Tensor, keys: Tensor, queue: "Queue", temperature: float) -> Contrast:
    """Return InfoNCE with one positive, the image's own key, and all keys of the queue as negatives.

    It is the mean over *i* of −log(exp(q_i·k_i/τ) / (exp(q_i·k_i/τ) + Σ_j exp(q_i·n_j/τ))) (He et al., arXiv
    1911.05722, equation 1). No gradient flows to the keys or the queue.

    Args:
        queries: (B, D).
        keys: (B, D), keys of the same images.
        queue: The negatives n.
        temperature: τ.
    """
    q_BD, k_BD = _unit(queries), _unit(keys.detach())
    positive, negative = (q_BD * k_BD).sum(dim=1, keepdim=True), _similarities(q_BD, queue.keys)
    own = torch.zeros(len(q_BD), dtype=torch.long, device=q_BD.device)
    return _contrast(torch.cat([positive, negative], dim=1), own, temperature)


class Queue(nn.Module):
    """Keys of earlier batches, first in, first out (arXiv 1911.05722, section 3.2); it starts with random directions.

    The keys given to `add` enter with `advance`, once per optimizer step: the micro-batches of a step see the same
    negatives, and all workers keep the same queue. The number of keys per step need not divide the length.

    Attributes:
        keys: (K, D), each of length 1.
        position: Position of the next key.

    Args:
        length: K.
        width: D.
    """

    keys: Tensor
    position: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, width), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        self.waiting: list[Tensor] = []  # empty whenever a checkpoint is written

    @torch.no_grad()
    def add(self, keys: Tensor) -> None:
        """Record the keys (B, D) of a micro-batch, of any length."""
        self.waiting.append(_unit(keys).to(self.keys.dtype))

    @torch.no_grad()
    def advance(self) -> None:
        """Replace the oldest keys by the recorded ones of all workers, in order of rank.

        Raises:
            ValueError: There are more keys than fit in the queue.
        """
        if not self.waiting:
            return
        new = gather_rows(torch.cat(self.waiting))
        self.waiting.clear()
        if len(new) > len(self.keys):
            raise ValueError(f"{len(new)} keys do not fit in a queue of {len(self.keys)}")
        # Computed on the device, so that nothing waits for it.
        places = (self.position + torch.arange(len(new), device=new.device)) % len(self.keys)
        self.keys.index_copy_(0, places, new)
        self.position.add_(len(new)).remainder_(len(self.keys))


def feature_std(features: Tensor) -> Tensor:
    """Return the spread of the directions of this worker's features (N, D): 1 if isotropic, 0 if all are alike."""
    unit = _unit(features)
    return unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5


def _unit(x: Tensor) -> Tensor:
    """Return rows of length 1, in float32 or better.

    bfloat16 rounds a cosine by up to 0.002, a hundredth of a logit.
    """
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


def _similarities(q_BD: Tensor, k_ND: Tensor) -> Tensor:
    with torch.autocast(q_BD.device.type, enabled=False):
        return q_BD @ k_ND.to(q_BD.dtype).T


def _contrast(cosines_BN: Tensor, own_B: Tensor, temperature: float) -> Contrast:
    accuracy = (cosines_BN.detach().argmax(dim=1) == own_B).to(cosines_BN.dtype).mean()
    return Contrast(F.cross_entropy(cosines_BN / temperature, own_B), accuracy)
