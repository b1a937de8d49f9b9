"""DINO's loss: cross-entropy between sharpened, centred teacher and student views of one image."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayreid.training.parallel import all_reduce_sum, world_size


class DINOTerms(NamedTuple):
    """The loss and, detached, what it consists of: loss = teacher_entropy + kl (all scalars, in nats)."""

    loss: Tensor
    teacher_entropy: Tensor
    kl: Tensor


class DINOLoss(nn.Module):
    """Self-distillation with centring and sharpening (Caron et al., arXiv 2104.14294, equations 1–4).

    The mean over images and over all pairs (teacher's global view i, student's view v ≠ i) of H(P_i, P_v),
    with P_i = softmax((t_i − c)/τ_t) and P_v = softmax(s_v/τ_s).

    Attributes:
        centre: c, (1, K); moving average of the teacher's logits, changed by `update_centre` only.

    Args:
        out_dim: number of prototypes K.
        student_temp: τ_s.
        centre_momentum: share of the old centre that an update keeps.
    """

    centre: Tensor
    pending: Tensor

    def __init__(self, out_dim: int, student_temp: float = 0.1, centre_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.centre_momentum = centre_momentum
        self.register_buffer("centre", torch.zeros(1, out_dim))
        # Sum and number of the teacher's rows since the last update: empty whenever a checkpoint is written
        self.register_buffer("pending", torch.zeros(1, out_dim), persistent=False)
        self.pending_rows = 0

    def forward(self, student: Tensor, teacher: Tensor, teacher_temp: float) -> DINOTerms:
        """Loss of one micro-batch of B images; notes the teacher's rows for the next `update_centre`.

        Args:
            student: logits (V·B, K), crop-major, the G global crops first.
            teacher: logits (G·B, K) of the global crops, crop-major; no gradient flows to them.
            teacher_temp: τ_t.

        Raises:
            ValueError: fewer than two crops, or rows that are not whole crops of the same images.
        """
        G, K = 2, teacher.shape[1]
        B = teacher.shape[0] // G
        if B == 0 or teacher.shape[0] % G or student.shape[0] % B or student.shape[0] < teacher.shape[0]:
            raise ValueError(f"{len(student)} student and {len(teacher)} teacher rows: not two global crops or more")
        V = student.shape[0] // B
        # Below float32 a temperature's division would round the logits; autocast changes none of what follows
        precise = torch.promote_types(student.dtype, torch.float32)
        with torch.no_grad():
            teacher = teacher.to(precise)
            self.pending += teacher.sum(dim=0, keepdim=True)
            self.pending_rows += len(teacher)
            log_p = F.log_softmax((teacher - self.centre) / teacher_temp, dim=-1).view(G, B, K)
            p_GBK = log_p.exp()
            entropy = -(p_GBK * log_p).sum() / (G * B)
        log_q_VBK = F.log_softmax(student.to(precise) / self.student_temp, dim=-1).view(V, B, K)
        # All pairs at once: each student view meets the teacher's views together, then its own is taken away
        all_pairs = (log_q_VBK.sum(dim=0) * p_GBK.sum(dim=0)).sum()
        same_view = (log_q_VBK[:G] * p_GBK).sum()
        loss = (same_view - all_pairs) / (G * (V - 1) * B)
        return DINOTerms(loss, entropy, loss.detach() - entropy)

    @torch.no_grad()
    def update_centre(self) -> None:
        """c ← m·c + (1 − m)·mean of the teacher's rows noted since the last call, over workers (equation 4).

        Once per optimizer step; every worker must have noted as many rows as the others.
        """
        if self.pending_rows == 0:
            return
        mean = all_reduce_sum(self.pending) / (self.pending_rows * world_size())
        self.centre.lerp_(mean.to(self.centre.dtype), 1 - self.centre_momentum)
        self.pending.zero_()
        self.pending_rows = 0
