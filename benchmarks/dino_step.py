"""A DINO training step against the same step made the plain way (`dino_plain.py`), in turns in one process."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np
import torch
from dino_plain import PlainDINO
from timing import paired, show_table
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from rayreid.data.augment.augment import MultiCrop
from rayreid.data.batch import ImageBatch
from rayreid.models.backbones import build_backbone
from rayreid.pretraining.dino import DINO
from rayreid.pretraining.dino_schedules import DINOSchedules
from rayreid.training.loop import autocast

SIZE, LOCAL_SIZE, LOCAL_CROPS = (256, 128), (128, 64), 8
PROFILED = 3
PHASES = (
    "teacher forward",
    "student forward",
    "heads and loss",
    "backward",
    "clipping",
    "optimizer",
    "teacher and centre",
)


def build(args: argparse.Namespace, device: torch.device) -> DINO:
    """The method, past the epoch in which the last layer is frozen."""
    torch.manual_seed(0)
    networks = [build_backbone(args.backbone, args.stem, SIZE, args.depth, drop_path=rate) for rate in (0.1, 0.0)]
    schedules = DINOSchedules(epochs=100, steps_per_epoch=1000, lr=5e-4 * args.batch / 256)
    method = DINO(*networks, schedules, out_dim=args.prototypes, freeze_last_layer_epochs=0)
    return method.to(device).train()


class Ours:
    """The platform's step."""

    def __init__(self, args: argparse.Namespace, precision: str, device: torch.device):
        self.method, self.precision, self.device = build(args, device), precision, device
        self.optimizer = self.method.build_optimizer()

    def step(self, step: int, crops: list[torch.Tensor]) -> float:
        """As the training loop makes it, read back at the end as `PlainDINO.step` is."""
        self.method.set_schedules(self.optimizer, step)
        with autocast(self.precision, self.device):
            loss = self.method.losses(crops)["loss"]
        loss.backward()
        self.method.before_update(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_update(step)
        return loss.item()

    def step_by_phase(self, step: int, crops: list[torch.Tensor]) -> None:
        """The same, taken apart."""
        method = self.method
        method.set_schedules(self.optimizer, step)
        with autocast(self.precision, self.device):
            with self.phase(0), torch.no_grad():
                seen_by_teacher = method.teacher.backbone.features(crops[:1])
            with self.phase(1):
                seen_by_student = method.student.backbone.features(crops)
            with self.phase(2):
                with torch.no_grad():
                    teacher = method.teacher.head(seen_by_teacher)
                loss = method.loss(method.student.head(seen_by_student), teacher, method.rates.teacher_temp).loss
        with self.phase(3):
            loss.backward()
        with self.phase(4):
            method.before_update(step)
        with self.phase(5):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with self.phase(6):
            method.after_update(step)

    @contextmanager
    def phase(self, number: int) -> Iterator[None]:
        """Under a name for the profiler, until the device has done it."""
        with record_function(PHASES[number]):
            yield
            wait_for(self.device)


def crops_of(args: argparse.Namespace, device: torch.device) -> list[torch.Tensor]:
    torch.manual_seed(1)
    sizes = ((2, SIZE), (LOCAL_CROPS, LOCAL_SIZE))
    return [torch.randn(count * args.batch, 3, *size, device=device) for count, size in sizes]


def images_of(args: argparse.Namespace) -> ImageBatch:
    """Decoded images on the host, as the feed hands them on."""
    made = np.random.default_rng(0).integers(0, 256, (args.batch, *SIZE, 3), dtype=np.uint8)
    return ImageBatch.collate(list(made))


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def finished(step: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """The step, waited for until the device has done it."""

    def run() -> None:
        step()
        wait_for(device)

    return run


def breakdown(ours: Ours, crops: list[torch.Tensor]) -> None:
    """Print how a step's time is divided; the device is waited for after each phase, which the step itself does not."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for step in range(PROFILED):
            ours.step_by_phase(step, crops)
    seconds = {event.key: event.cpu_time_total / 1e6 / PROFILED for event in profiler.key_averages()}
    total = sum(seconds[name] for name in PHASES)
    print(f"\n{ours.precision}, where the time of a step goes (torch.profiler, {1000 * total:,.0f} ms)")
    for name in PHASES:
        print(f"  {name:20}{1000 * seconds[name]:10,.1f} ms  {100 * seconds[name] / total:5.1f} %")


def floating_point_operations(ours: Ours, crops: list[torch.Tensor]) -> int:
    """Of the matrix products and convolutions of one step."""
    with FlopCounterMode(display=False) as counter:
        ours.step(0, crops)
    return counter.get_total_flops()


def measure(args: argparse.Namespace, device: torch.device, precision: str, plain_precision: str) -> tuple[str, ...]:
    """Time both, print where ours spends its time and what it did with the device; returns the table's row."""
    ours = Ours(args, precision, device)
    plain = PlainDINO(build(args, device), plain_precision, device)
    crops = crops_of(args, device)
    first = [side.step(0, crops) for side in (ours, plain)]
    assert abs(first[0] - first[1]) < 0.02 * first[1], f"not the same loss: {first}"
    if device.type == "cuda":
        images, keys = images_of(args), [f"{number}.jpg" for number in range(args.batch)]
        augment = MultiCrop(SIZE, LOCAL_SIZE, LOCAL_CROPS)
        sides = [lambda side=side: side.step(1, augment(images.to(device), keys, 0, 0)) for side in (ours, plain)]
    else:
        sides = [lambda side=side: side.step(1, crops) for side in (ours, plain)]
    times = paired(*(finished(side, device) for side in sides), args.repeats)
    seconds = median(times.measured)
    breakdown(ours, crops)
    count = floating_point_operations(ours, crops)
    print(
        f"  {args.batch / seconds:,.1f} images/s, {count / 1e12:.2f} TFLOP a step, {count / seconds / 1e12:.2f} TFLOP/s"
    )
    print(f"  speed-up over the plain step {1 / median(times.ratios):.2f}")
    if device.type == "cuda":
        show_device(args, device, count / seconds, sides)
    return times.row(f"step, {precision} (baseline {plain_precision})", "ms", lambda s: 1000 * s)


def show_device(args: argparse.Namespace, device: torch.device, rate: float, sides: list[Callable]) -> None:
    if args.peak_tflops:
        print(f"  model FLOPs utilisation {100 * rate / 1e12 / args.peak_tflops:.1f} % of {args.peak_tflops:g} TFLOP/s")
    for name, side in zip(("ours", "plain"), sides, strict=True):
        torch.cuda.reset_peak_memory_stats(device)
        finished(side, device)()
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        print(f"  peak memory, {name} (both sides' states resident): {peak:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="images (default: 8, on CUDA 64)")
    parser.add_argument("--backbone", default="vit_small")
    parser.add_argument("--stem", default="ics")
    parser.add_argument("--depth", type=int, help="blocks, if not the backbone's own")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--precision", nargs="+", default=None, help="default: fp32 bf16, on CUDA bf16")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU")
    parser.add_argument("--peak-tflops", type=float, help="of the device at that precision, for its utilisation")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    args.batch = args.batch or (64 if cuda else 8)
    torch.set_num_threads(args.threads)

    # On CUDA the usual way is fp16; on the CPU both sides run at the same precision
    precisions = args.precision or (["bf16"] if cuda else ["fp32", "bf16"])
    rows = [measure(args, device, precision, "fp16" if cuda else precision) for precision in precisions]
    where = torch.cuda.get_device_name(device) if cuda else f"{args.threads} threads"
    given = "from decoded images" if cuda else "crops given"
    print()
    show_table(
        f"DINO step, {args.backbone} {args.stem}, {args.prototypes:,} prototypes, batch {args.batch}; crops 2 of "
        f"{SIZE[0]}x{SIZE[1]} and {LOCAL_CROPS} of {LOCAL_SIZE[0]}x{LOCAL_SIZE[1]}, {given}, {where}; baseline: plain",
        rows,
        ("torch", "timm"),
    )


if __name__ == "__main__":
    main()
