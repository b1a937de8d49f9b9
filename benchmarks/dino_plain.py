"""DINO the plain way, from its papers' description: the baseline of `dino_step.py`.

Shares with the platform the networks' layers and start, and nothing of how a step is made: every token through every
block, attention in explicit products, one forward per crop size, the loss term by term, and a Python loop over the
parameters for clipping, AdamW and the teacher.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainNetwork(nn.Module):
    """Backbone and head of one side, from the parts of the platform's."""

    def __init__(self, network: nn.Module):
        super().__init__()
        parts = copy.deepcopy(network)
        self.backbone, self.mlp = parts.backbone, parts.head.mlp
        self.prototypes = nn.Parameter(parts.head.last_layer.weight_v.detach().clone())
        for block in self.backbone.blocks:
            block.attn.fused_attn = False
        stem = self.backbone.patch_embed
        before = getattr(stem, "conv", nn.Identity())
        stem.tokens = lambda images: stem.proj(before(images))

    def forward(self, crops: Sequence[Tensor]) -> Tensor:
        output = torch.empty(0, device=crops[0].device)
        for crop in crops:
            output = torch.cat([output, self.backbone.forward_features(crop)[:, 0]])
        unit = F.normalize(self.mlp(output), dim=-1)
        return F.linear(unit, F.normalize(self.prototypes, dim=-1))


class PlainDINO:
    """One optimizer step at a time; `method` supplies weights and rates."""

    def __init__(self, method: nn.Module, precision: str, device: torch.device):
        self.student, self.teacher = PlainNetwork(method.student).to(device), PlainNetwork(method.teacher).to(device)
        self.teacher.requires_grad_(False)
        self.centre = torch.zeros(1, len(self.student.prototypes), device=device)
        self.method, self.device, self.precision = method, device, precision
        decayed, undecayed = [], []
        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                (undecayed if name.endswith("bias") or parameter.dim() == 1 else decayed).append(parameter)
        groups = [{"params": decayed, "decayed": True}, {"params": undecayed, "decayed": False}]
        self.optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step(self, step: int, crops: Sequence[Tensor]) -> float:
        self.method.set_schedules(self.optimizer, step)
        kind = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=kind, enabled=self.precision != "fp32"):
            with torch.no_grad():
                teacher = self.teacher(crops[:1])
            student = self.student(crops)
            loss = self.loss(student.float(), teacher.float())
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                share = self.method.clip / (parameter.grad.norm(2) + 1e-6)
                if share < 1:
                    parameter.grad.mul_(share)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        momentum = self.method.schedules.at(step).teacher_momentum
        with torch.no_grad():
            for ours, theirs in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                theirs.mul_(momentum).add_((1 - momentum) * ours.detach())
        return loss.item()

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        views = (student / self.method.loss.student_temp).chunk(student.shape[0] * 2 // teacher.shape[0])
        targets = F.softmax((teacher - self.centre) / self.method.rates.teacher_temp, dim=-1).chunk(2)
        terms = [
            torch.sum(-target * F.log_softmax(view, dim=-1), dim=-1).mean()
            for i, target in enumerate(targets)
            for v, view in enumerate(views)
            if v != i
        ]
        keep = self.method.loss.centre_momentum
        self.centre = self.centre * keep + teacher.mean(dim=0, keepdim=True) * (1 - keep)
        return sum(terms) / len(terms)
