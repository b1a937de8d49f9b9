"""DINO's loss: the cross-entropy between sharpened, centred teacher views and student views of an image."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rayreid.training.compilation import compilable
from rayreid.training.parallel import all_reduce_sum, world_size


class DINOTerms(NamedTuple):
    """The loss and, detached, its parts: loss = teacher_entropy + kl (all scalars, in nats)."""

    loss: Tensor
    teacher_entropy: Tensor
    kl: Tensor


class DINOLoss(nn.Module):
    """Self-distillation with centring and sharpening (Caron et al., arXiv 2104.14294, equations 1–4).

    The loss is the mean over images and over all pairs (teacher's global view i, student's view v ≠ i) of H(P_i, P_v),
    with P_i = softmax((t_i − c)/τ_t) and P_v = softmax(s_v/τ_s).

    Attributes:
        centre: c, (1, K); moving average of the teacher's logits, changed only by `update_centre`.

    Args:
        out_dim: Number of prototypes K.
        student_temp: τ_s.
        centre_momentum: Share of the old centre that an update keeps.
    """

    centre: Tensor
    pending: Tensor

    def __init__(self, out_dim: int, student_temp: float = 0.1, centre_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.centre_momentum = centre_momentum
        self.register_buffer("centre", torch.zeros(1, out_dim))
        # Sum and number of the teacher's rows since the last update; empty whenever a checkpoint is written.
        self.register_buffer("pending", torch.zeros(1, out_dim), persistent=False)
        self.pending_rows = 0

    def forward(self, student: Tensor, teacher: Tensor, teacher_temp: float) -> DINOTerms:
        """Return the loss of one micro-batch of B images, and record the teacher's rows for the next `update_centre`.

        Args:
            student: Logits (V·B, K), crop-major, the G global crops first.
            teacher: Logits (G·B, K) of the global crops, crop-major; no gradient flows to them.
            teacher_temp: τ_t.

        Raises:
            ValueError: There are fewer than two crops, or the rows are not whole crops of the same images.
        """
        G, K = 2, teacher.shape[1]
        B = teacher.shape[0] // G
        if B == 0 or teacher.shape[0] % G or student.shape[0] % B or student.shape[0] < teacher.shape[0]:
            raise ValueError(f"{len(student)} student and {len(teacher)} teacher rows: not two global crops or more")
        # Below float32, the division by a temperature would round the logits; autocast does not change what follows.
        precise = torch.promote_types(student.dtype, torch.float32)
        with torch.no_grad():
            temperature = torch.full((), teacher_temp, dtype=precise, device=teacher.device)
            p_NK, entropy, total = _targets(teacher.to(precise), self.centre, temperature)
            self.pending += total
            self.pending_rows += len(teacher)
        loss: Tensor = _CrossEntropy.apply(student.to(precise), p_NK.view(G, B, K), self.student_temp)
        return DINOTerms(loss, entropy, loss.detach() - entropy)

    @torch.no_grad()
    def update_centre(self) -> None:
        """Update the centre: c ← m·c + (1 − m)·mean of the recorded teacher rows over all workers (equation 4).

        Call it once per optimizer step; every worker must have recorded the same number of rows.
        """
        if self.pending_rows == 0:
            return
        mean = all_reduce_sum(self.pending) / (self.pending_rows * world_size())
        self.centre.lerp_(mean.to(self.centre.dtype), 1 - self.centre_momentum)
        self.pending.zero_()
        self.pending_rows = 0


@compilable
def _targets(teacher_NK: Tensor, centre: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the teacher's distributions (N, K), their mean entropy (), and the sum of its logits (1, K)."""
    total = teacher_NK.sum(dim=0, keepdim=True)
    sharpened = (teacher_NK - centre) / temperature
    # so that a small entropy is not a difference of large numbers
    sharpened = sharpened - sharpened.amax(dim=1, keepdim=True)
    p_NK = sharpened.softmax(dim=1)
    entropy = (_log_sum_exp(sharpened, p_NK).sum() - _inner(sharpened, p_NK)) / len(teacher_NK)
    return p_NK, entropy, total


class _CrossEntropy(torch.autograd.Function):
    """Mean of H(p_i, softmax(s_v / τ)) over images and pairs of views v ≠ i: logits (V·B, K), p (G, B, K) → scalar.

    With S = Σ_i p_i, view v is compared with S − p_v (p_v is zero for a local view), with weight w_v = G − 1 or G:
        Σ_i≠v H(p_i, q_v) = w_v · logsumexp(s_v/τ) − ⟨s_v/τ, S − p_v⟩,   its gradient to s_v: (w_v · q_v − S + p_v) / τ.

    All pairs together therefore need one softmax, which becomes the gradient in place: one matrix is kept, and none is
    computed again.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, p_GBK: Tensor, temperature: float) -> Tensor:
        G, B, _ = p_GBK.shape
        loss, gradient = _loss_and_gradient(student, p_GBK, temperature)
        ctx.save_for_backward(gradient)
        ctx.scale = 1 / (temperature * G * (len(student) // B - 1) * B)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (gradients[0] * ctx.scale), None, None


@compilable
def _loss_and_gradient(student: Tensor, p_GBK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss (), and the gradient (V·B, K) up to a factor common to all of its elements."""
    G, B, K = p_GBK.shape
    s_VBK = (student / temperature).view(-1, B, K)
    gradient = s_VBK.softmax(dim=-1)
    V = len(s_VBK)
    total = p_GBK.sum(dim=0)
    normalisers = _log_sum_exp(s_VBK, gradient)
    agreement = _inner(s_VBK.sum(dim=0), total) - _inner(s_VBK[:G], p_GBK)
    loss = (normalisers[:G].sum() * (G - 1) + normalisers[G:].sum() * G - agreement) / (G * (V - 1) * B)
    gradient[:G].mul_(G - 1).add_(p_GBK)
    gradient[G:].mul_(G)
    return loss, gradient.sub_(total).view_as(student)


def _log_sum_exp(logits: Tensor, softmax: Tensor) -> Tensor:
    """Return the logsumexp over the last dimension, which stays as 1.

    It is read from the softmax at its largest element (at least 1/K).
    """
    return logits.amax(dim=-1, keepdim=True) - softmax.amax(dim=-1, keepdim=True).log()


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """Return the sum of the products of all elements."""
    return torch.dot(one.reshape(-1), other.reshape(-1))
