"""DINO pre-training steps, by the platform's own loop."""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from dino_plain import PlainDINO
from torch.utils.flop_counter import FlopCounterMode

from gpu_rows.clock import kernels, seconds_each, wait
from rayreid.data.augment.augment import MultiCrop
from rayreid.data.batch import ImageBatch
from rayreid.models.backbones import build_backbone
from rayreid.pretraining.dino import DINO
from rayreid.pretraining.dino_schedules import DINOSchedules
from rayreid.training.loop import Batch, LoopSettings, autocast, train
from rayreid.training.staging import lane_for, one_ahead

SIZE, LOCAL_SIZE, LOCAL_CROPS = (256, 128), (128, 64), 8
WARM, STEPS = 6, 20
NOMINAL_GFLOP = {("vit_small", "patchify"): 82.9, ("vit_small", "ics"): 106.5}
"""Per image: the student's forward pass over all crops three times, the teacher's over the global ones once, every
token through every block; benchmarks/README.md has the formula."""


def build(args: argparse.Namespace, name: str, stem: str) -> DINO:
    """The method, past the epoch in which the last layer is frozen."""
    torch.manual_seed(0)
    if args.toy:
        networks = [build_backbone("vit_tiny", stem, SIZE, 2, drop_path=rate) for rate in (0.1, 0.0)]
    else:
        networks = [build_backbone(name, stem, SIZE, drop_path=rate) for rate in (0.1, 0.0)]
    schedules = DINOSchedules(epochs=100, steps_per_epoch=1000, lr=5e-4)
    prototypes = 512 if args.toy else 65536
    method = DINO(*networks, schedules, out_dim=prototypes, freeze_last_layer_epochs=0)
    return method.to(args.device).train()


def random_crops(args: argparse.Namespace, batch: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator(args.device).manual_seed(seed)
    sizes = ((2, SIZE), (LOCAL_CROPS, LOCAL_SIZE))
    return [torch.randn(n * batch, 3, *size, device=args.device, generator=generator) for n, size in sizes]


def settings(args: argparse.Namespace, compile: bool, steps: int) -> LoopSettings:
    precision = "fp32" if args.toy else "bf16"
    return LoopSettings(steps, 1, precision=precision, log_every=1_000_000, compile=compile)


def rate(args: argparse.Namespace, method: DINO, batches: Iterator[Batch], compile: bool) -> float:
    """Seconds of a step of the training loop, after `WARM` steps that are left out."""
    device = torch.device(args.device)
    warm, steps = (1, 2) if args.toy else (WARM, STEPS)
    marks: list[float] = []

    def timed(start: int) -> Iterator[Batch]:
        for step in range(start, warm + steps):
            if step == warm:
                wait(args.device)
                marks.append(time.perf_counter())
            yield next(batches)

    train(method, timed, settings(args, compile, warm + steps), device)
    wait(args.device)
    return (time.perf_counter() - marks[0]) / steps


def forever(crops: list[torch.Tensor], batch: int) -> Iterator[Batch]:
    keys = [f"{number}.jpg" for number in range(batch)]
    while True:
        yield Batch(keys, crops)


def from_images(args: argparse.Namespace, batch: int) -> Iterator[Batch]:
    """Crops made of decoded images of the crops' size beside the steps, as the feed makes them."""
    device = torch.device(args.device)
    made = np.random.default_rng(0).integers(0, 256, (batch, *SIZE, 3), dtype=np.uint8)
    images = ImageBatch.collate(list(made), pinned=not args.toy)
    keys = [f"{number}.jpg" for number in range(batch)]
    augment = MultiCrop(SIZE, LOCAL_SIZE, LOCAL_CROPS)

    def prepare(epoch: int) -> list[torch.Tensor]:
        return augment(images.to(device, non_blocking=True), keys, epoch, 0)

    for _, crops in one_ahead(iter(range(1_000_000)), prepare, lane_for(device)):
        yield Batch(keys, crops)


def like_the_cpu(args: argparse.Namespace, stem: str, name: str, compile: bool) -> str:
    """Whether two steps give the losses that they give on a CPU in float32, within what bf16 rounds."""
    crops = [crop.cpu() for crop in random_crops(args, 4)]
    losses = {}
    for device in ("cpu", args.device):
        shrunk = argparse.Namespace(**{**vars(args), "toy": True, "device": device})
        method, rows = build(shrunk, name, stem), []
        here = [crop.to(device) for crop in crops]
        loop = replace(settings(shrunk, compile and device != "cpu", 3), log_every=1, precision="fp32")
        for networks in (method.student, method.teacher):
            for block in networks.backbone.blocks:  # each device draws its own drop path
                block.drop_path1, block.drop_path2 = torch.nn.Identity(), torch.nn.Identity()
        train(method, lambda start, here=here: forever(here, 4), loop, torch.device(device), log=rows.append)
        losses[device] = torch.tensor([row["loss"] for row in rows])
    agree = torch.allclose(losses["cpu"], losses[args.device], rtol=2e-4)
    return "yes" if agree else f"NO: {losses}"


def measured(stem: str, batch: int, name: str, compile: bool) -> Callable[[argparse.Namespace], dict[str, float | str]]:
    def measure(args: argparse.Namespace) -> dict[str, float | str]:
        B = 2 if args.toy else batch
        values: dict[str, float | str] = {"batch": float(B)}
        crops = random_crops(args, B)
        method = build(args, name, stem)
        if not args.toy:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        rate(args, method, forever(crops, B), compile)
        values["first_call_s"] = time.perf_counter() - began
        seconds = rate(args, method, forever(crops, B), compile)
        values["images_s"] = B / seconds
        if not args.toy:
            values["memory_GiB"] = torch.cuda.max_memory_allocated() / 2**30
        if (name, stem) in NOMINAL_GFLOP and not args.toy:
            values["nominal_TFLOPs"] = B * NOMINAL_GFLOP[name, stem] / seconds / 1e3
        with_images = rate(args, method, from_images(args, B), compile)
        values["images_s_with_augmentation"] = B / with_images
        loop = settings(args, compile, 1)

        def once() -> None:
            train(method, lambda start: forever(crops, B), loop, torch.device(args.device))

        how = "compiled" if compile else "eager"
        table = args.profile / f"step_{stem}_{name}_{B}_{how}.txt" if args.profile else None
        values |= kernels(once, args.device, table)
        if not compile:
            with FlopCounterMode(display=False) as counter, autocast(loop.precision, torch.device(args.device)):
                method.losses(crops)["loss"].backward()
            values["executed_TFLOPs"] = counter.get_total_flops() / seconds / 1e12
        values["same"] = like_the_cpu(args, stem, name, compile) if name == "vit_small" else "not compared"
        return values

    return measure


def compiled(stem: str, batch: int, name: str = "vit_small") -> Callable[[argparse.Namespace], dict[str, float | str]]:
    return measured(stem, batch, name, True)


def eager(stem: str, batch: int, name: str = "vit_small") -> Callable[[argparse.Namespace], dict[str, float | str]]:
    return measured(stem, batch, name, False)


def plain(stem: str, batch: int) -> Callable[[argparse.Namespace], dict[str, float | str]]:
    """The baseline: `dino_plain.py`, in half precision on a GPU as it is usual."""

    def measure(args: argparse.Namespace) -> dict[str, float | str]:
        B = 2 if args.toy else batch
        side = PlainDINO(build(args, "vit_small", stem), "fp32" if args.toy else "fp16", torch.device(args.device))
        crops = random_crops(args, B)
        seconds = seconds_each(lambda: side.step(1, crops), args.device, 1 if args.toy else 10)
        return {"batch": float(B), "images_s": B / seconds}

    return measure
