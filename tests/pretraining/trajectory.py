"""The published training trajectories, driven as the training loop drives them."""

import copy

import numpy as np
import torch

from rayreid.models.backbones import build_backbone
from rayreid.pretraining.dino import DINO
from rayreid.pretraining.dino_schedules import DINOSchedules
from rayreid.training.averaging import average_gradients

TRAJECTORIES = {"ics": "dino_trajectory_ics.npz", "patchify": "dino_trajectory_patchify.npz"}


class Case(dict):
    """A parity file as workers can be sent it: its arrays by name, `meta` and `state`."""

    def __init__(self, golden):
        super().__init__(golden)
        self.meta, self.state = golden.meta, golden.state


def cosine_end(values: np.ndarray, peak: float) -> float:
    """The value towards which `values`, steps of a cosine from `peak`, run."""
    done = 0.5 * (1 - np.cos(np.pi * (len(values) - 1) / len(values)))
    return float(peak + (values[-1] - peak) / done)


def method_of(case, stem: str, dtype: torch.dtype) -> DINO:
    """The pair of networks, schedules and hyper-parameters that the file describes."""
    meta, head = case.meta, case.meta["head"]
    warmup_steps = int(np.argmax(case["lr"])) + 1
    backbone = build_backbone(
        "vit_tiny",
        stem=stem,
        img_size=tuple(meta["img_size"]),
        depth=meta["depth"],
        embed_dim=meta["embed_dim"],
        num_heads=meta["heads"],
        patch_size=meta["patch"],
    )
    method = DINO(
        backbone,
        copy.deepcopy(backbone),
        DINOSchedules(
            epochs=meta["epochs"],
            steps_per_epoch=meta["iters_per_epoch"],
            lr=float(case["lr"].max()),
            min_lr=cosine_end(case["lr"][warmup_steps:], case["lr"].max()),
            warmup_epochs=warmup_steps // meta["iters_per_epoch"],
            weight_decay=float(case["wd"][0]),
            weight_decay_end=cosine_end(case["wd"], case["wd"][0]),
            teacher_momentum=float(case["momentum"][0]),
            teacher_temp=meta["teacher_temp"],
        ),
        out_dim=head["out_dim"],
        hidden_dim=head["hidden_dim"],
        bottleneck_dim=head["bottleneck_dim"],
        student_temp=meta["student_temp"],
        centre_momentum=meta["center_momentum"],
        clip=float(meta["clip_grad"].split()[0]),
        freeze_last_layer_epochs=meta["freeze_last_layer_epochs"],
    )
    state = {name: torch.from_numpy(value) for name, value in case.state.items()}
    method.student.load_state_dict(state)
    method.teacher.load_state_dict(state)
    return method.to(dtype).train()


def crops_of(case, step: int, dtype: torch.dtype, share: slice = slice(None)) -> list[torch.Tensor]:
    """Crop-major, of a worker's share of the images."""
    return [torch.from_numpy(case[n][step])[:, share].to(dtype).flatten(0, 1) for n in ("crops_global", "crops_local")]


def run(method: DINO, optimizer, step: int, micro_batches: list[list[torch.Tensor]]) -> float:
    """One optimizer step as the loop makes it; returns the mean loss."""
    method.set_schedules(optimizer, step)
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for crops in micro_batches:
        loss = method.losses(crops)["loss"] / len(micro_batches)
        loss.backward()
        total += loss.item()
    average_gradients(p for group in optimizer.param_groups for p in group["params"])
    method.before_update(step)
    optimizer.step()
    method.after_update(step)
    return total
