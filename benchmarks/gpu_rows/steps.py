"""DINO pre-training steps, by the platform's own loop."""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from dino_plain import PlainDINO

from gpu_rows import flops
from gpu_rows.clock import PROFILED, Trace, forget_memory, kernels, memory, seconds_each, wait
from gpu_rows.part import Part, Row, Values, agreement
from rayreid.data.augment.augment import MultiCrop
from rayreid.data.batch import ImageBatch
from rayreid.models.backbones import build_backbone
from rayreid.pretraining.dino import DINO
from rayreid.pretraining.dino_schedules import DINOSchedules
from rayreid.training.compilation import compiled
from rayreid.training.loop import Batch, LoopSettings, autocast, train
from rayreid.training.staging import lane_for, one_ahead

SIZE, LOCAL_SIZE, LOCAL_CROPS = (256, 128), (128, 64), 8
WARM, STEPS = 6, 20
COUNTED = 2
"""Images of the steps whose operations are counted; their number is proportional to that of the images."""
COMPARED = 4
"""Images of the steps that are compared with the CPU's."""
LOSS_ERROR, GRADIENT_ERROR = 1e-3, 0.05
"""How far half precision may move a loss and a gradient (the norm of the difference) from those in float32, relatively.

On a CPU, bfloat16 moves the loss of four images by up to 5e-5, and the gradient of ViT-S/16 by 0.009 (`patchify`) and
0.018 (`ics`), that of ViT-B/16 by 0.013. A bias of 0.05 in one of twelve MLPs moves the loss by 3e-4 and the gradient
by 0.083.
"""


@dataclass(frozen=True)
class Case:
    """A pre-training: its network, and the (height, width) of its crops."""

    name: str
    stem: str
    depth: int | None = None
    prototypes: int = 65536
    size: tuple[int, int] = SIZE
    local_size: tuple[int, int] = LOCAL_SIZE

    def shallow(self) -> "Case":
        """The same crops and stem with a network of two blocks."""
        return replace(self, name="vit_tiny", depth=2, prototypes=512)

    def build(self, device: str, drop_path: float = 0.1, checkpointed: bool = False) -> DINO:
        """The method, past the epoch in which the last layer is frozen."""
        torch.manual_seed(0)
        networks = [
            build_backbone(self.name, self.stem, self.size, self.depth, drop_path=rate) for rate in (drop_path, 0.0)
        ]
        if checkpointed:
            networks[0].checkpoint_activations()
        schedules = DINOSchedules(epochs=100, steps_per_epoch=1000, lr=5e-4)
        method = DINO(*networks, schedules, out_dim=self.prototypes, freeze_last_layer_epochs=0)
        return method.to(device).train()

    def crops(self, device: str, batch: int) -> list[torch.Tensor]:
        """Random crops, drawn on the device."""
        generator = torch.Generator(device).manual_seed(1)
        sizes = ((2, self.size), (LOCAL_CROPS, self.local_size))
        return [torch.randn(n * batch, 3, *size, device=device, generator=generator) for n, size in sizes]

    def operations(self, method: DINO) -> float:
        """Nominal operations of a step per image."""
        return flops.of_step(method, self.size, self.local_size, LOCAL_CROPS)


def case(args: argparse.Namespace, name: str, stem: str) -> Case:
    """The case of a row; at toy size, one of the same kind."""
    return replace(Case(name, stem).shallow(), size=(64, 32), local_size=(32, 16)) if args.toy else Case(name, stem)


def settings(args: argparse.Namespace, compile: bool, steps: int) -> LoopSettings:
    return LoopSettings(steps, 1, precision=precision(args), log_every=1_000_000, compile=compile)


def precision(args: argparse.Namespace) -> str:
    return "fp32" if args.toy else "bf16"


def run(
    args: argparse.Namespace,
    method: DINO,
    batches: Iterator[Batch],
    compile: bool,
    steps: int,
    before: Callable[[int], None],
) -> None:
    """Make steps by the training loop, and wait for the last one; `before` is called before each."""

    def announced(start: int) -> Iterator[Batch]:
        for step in range(start, steps):
            before(step)
            yield next(batches)

    train(method, announced, settings(args, compile, steps), torch.device(args.device))
    wait(args.device)


def pace(args: argparse.Namespace, method: DINO, batches: Iterator[Batch], compile: bool) -> float:
    """Seconds of a step of the training loop, after some that are left out."""
    warm, steps = (1, 2) if args.toy else (WARM, STEPS)
    marks: list[float] = []

    def mark(step: int) -> None:
        if step == warm:
            wait(args.device)
            marks.append(time.perf_counter())

    run(args, method, batches, compile, warm + steps, mark)
    return (time.perf_counter() - marks[0]) / steps


def device_of_steps(
    args: argparse.Namespace, method: DINO, batches: Iterator[Batch], compile: bool, table: Path | None
) -> Values:
    """The idle share and the kernels of steps in the middle of a training, whose queue stays filled."""
    warm, steps = (1, 1) if args.toy else (WARM, PROFILED)
    with Trace(args.device) as trace:

        def window(step: int) -> None:
            if step == warm:
                trace.start()
            if step == warm + steps:
                trace.stop()

        run(args, method, batches, compile, warm + steps + 1, window)
    return trace.values(steps, table)


def forever(crops: list[torch.Tensor]) -> Iterator[Batch]:
    batch = len(crops[0]) // 2
    keys = [f"{number}.jpg" for number in range(batch)]
    while True:
        yield Batch(keys, crops)


def from_images(args: argparse.Namespace, case: Case, batch: int) -> Iterator[Batch]:
    """Crops made of decoded images of the crops' size beside the steps, as the feed makes them."""
    device = torch.device(args.device)
    made = np.random.default_rng(0).integers(0, 256, (batch, *case.size, 3), dtype=np.uint8)
    images = ImageBatch.collate(list(made), pinned=not args.toy)
    keys = [f"{number}.jpg" for number in range(batch)]
    augment = MultiCrop(case.size, case.local_size, LOCAL_CROPS)

    def prepare(epoch: int) -> list[torch.Tensor]:
        return augment(images.to(device, non_blocking=True), keys, epoch, 0)

    for _, crops in one_ahead(iter(range(1_000_000)), prepare, lane_for(device)):
        yield Batch(keys, crops)


def shallow_like_the_cpu(args: argparse.Namespace, case: Case, compile: bool) -> Values:
    """Compare the losses of three steps of a shallow network in float32 with the CPU's."""
    losses = []
    for device, inductor in (("cpu", False), (args.device, compile)):
        rows: list[dict[str, float]] = []
        method = case.shallow().build(device, drop_path=0.0)  # each device draws its own
        crops = [crop.to(device) for crop in case.crops("cpu", COMPARED)]
        loop = LoopSettings(3, 1, precision="fp32", log_every=1, compile=inductor)
        train(method, lambda start, crops=crops: forever(crops), loop, torch.device(device), log=rows.append)
        losses.append(torch.tensor([row["loss"] for row in rows]))
    difference = (losses[1] / losses[0] - 1).abs().max().item()
    return {"largest_difference": difference, **agreement(difference < 2e-4)}


def whole_like_the_cpu(args: argparse.Namespace, case: Case, compile: bool, checkpointed: bool) -> Values:
    """Compare the loss of a few images, and its gradient, of the whole network with the CPU's in float32."""
    expected, gradient = on_the_cpu(case)
    method = case.build(args.device, drop_path=0.0, checkpointed=checkpointed)
    loss, found = differentiated(case, method, args.device, precision(args), compile)
    loss_error = abs(loss / expected - 1)
    gradient_error = ((found - gradient).norm() / gradient.norm()).item()
    same = loss_error < LOSS_ERROR and gradient_error < GRADIENT_ERROR
    return {"loss": loss, "loss_error": loss_error, "gradient_error": gradient_error, **agreement(same)}


@cache
def on_the_cpu(case: Case) -> tuple[float, torch.Tensor]:
    """What `differentiated` returns in float32, uncompiled."""
    return differentiated(case, case.build("cpu", drop_path=0.0), "cpu", "fp32", False)


def differentiated(case: Case, method: DINO, device: str, precision: str, compile: bool) -> tuple[float, torch.Tensor]:
    """The loss of a few images, and its gradient to all of the student's parameters, on the host."""
    crops = [crop.to(device) for crop in case.crops("cpu", COMPARED)]
    with autocast(precision, torch.device(device)), compiled(compile):
        loss = method.losses(crops)["loss"]
    loss.backward()
    gradients = [parameter.grad for parameter in method.student.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat([gradient.flatten().cpu() for gradient in gradients])


def executed(case: Case, method: DINO, device: str, precision: str) -> float:
    """Executed operations of a step per image."""
    crops = case.crops(device, COUNTED)

    def work() -> None:
        with autocast(precision, torch.device(device)):
            loss = method.losses(crops)["loss"]
        loss.backward()

    count = flops.executed(work)
    method.zero_grad(set_to_none=True)
    return count / COUNTED


def measured(stem: str, batch: int, name: str = "vit_small", compile: bool = True, checkpointed: bool = False) -> Row:
    def parts(args: argparse.Namespace) -> Iterator[Part]:
        B, device, one = 2 if args.toy else batch, args.device, case(args, name, stem)
        method, crops = one.build(device, checkpointed=checkpointed), one.crops(device, B)
        seconds = 0.0

        def rate() -> Values:
            nonlocal seconds
            forget_memory(device)
            began = time.perf_counter()
            pace(args, method, forever(crops), compile)
            first = time.perf_counter() - began
            seconds = pace(args, method, forever(crops), compile)
            facts: Values = {"batch": float(B), "images_s": B / seconds, "first_call_s": first}
            return facts | memory(device) | flops.rates("nominal", B * one.operations(method), seconds, device)

        def with_augmentation() -> Values:
            return {"images_s_with_augmentation": B / pace(args, method, from_images(args, one, B), compile)}

        def work() -> Values:
            return flops.rates("executed", B * executed(one, method, device, precision(args)), seconds, device)

        how = ("compiled" if compile else "eager") + ("_checkpointed" if checkpointed else "")
        table = args.profile / f"step_{stem}_{name}_{B}_{how}.txt" if args.profile else None
        yield "rate", rate
        yield "augmentation", with_augmentation
        yield "device", lambda: device_of_steps(args, method, forever(crops), compile, table)
        yield "executed", work
        yield "shallow_like_the_cpu", partial(shallow_like_the_cpu, args, one, compile)
        yield "whole_like_the_cpu", partial(whole_like_the_cpu, args, one, compile, checkpointed)

    return parts


def plain(stem: str, batch: int) -> Row:
    """The baseline: `dino_plain.py`, in half precision on a GPU as it is usual."""

    def parts(args: argparse.Namespace) -> Iterator[Part]:
        B, device, one = 2 if args.toy else batch, args.device, case(args, "vit_small", stem)
        half = "fp32" if args.toy else "fp16"
        method = one.build("cpu")  # of which the baseline makes copies on the device
        side, crops = PlainDINO(method, half, torch.device(device)), one.crops(device, B)
        seconds = 0.0

        def rate() -> Values:
            nonlocal seconds
            forget_memory(device)
            seconds = seconds_each(lambda: side.step(1, crops), device, 1 if args.toy else 10)
            facts: Values = {"batch": float(B), "images_s": B / seconds}
            return facts | memory(device) | flops.rates("nominal", B * one.operations(method), seconds, device)

        def work() -> Values:
            few = one.crops(device, COUNTED)
            count = flops.executed(lambda: side.step(1, few)) / COUNTED
            return flops.rates("executed", B * count, seconds, device)

        def like_the_cpu() -> Values:
            """Compare the losses of two steps with the CPU's in float32."""
            losses = []
            for kind, there in (("fp32", "cpu"), (half, device)):
                other = PlainDINO(one.build("cpu", drop_path=0.0), kind, torch.device(there))
                few = [crop.to(there) for crop in one.crops("cpu", COMPARED)]
                losses.append(torch.tensor([other.step(step, few) for step in (1, 2)]))
            difference = (losses[1] / losses[0] - 1).abs().max().item()
            return {"largest_difference": difference, **agreement(difference < LOSS_ERROR)}

        table = args.profile / f"step_{stem}_vit_small_{B}_plain.txt" if args.profile else None
        yield "rate", rate
        yield "device", lambda: kernels(lambda: side.step(1, crops), device, table)
        yield "executed", work
        yield "like_the_cpu", like_the_cpu

    return parts
