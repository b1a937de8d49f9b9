"""Multi-crop augmentation of a batch against DINO's own way: image by image with torchvision and Pillow.

With two threads each side works on two batches at once: ours on two threads, as the feed of a training run does, the
baseline in two processes, as the workers of a DataLoader do (without the cost of handing the crops over).
"""

import argparse
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import median
from time import perf_counter

import numpy as np
import torch
from pictures import random_jpegs
from PIL import Image, ImageFilter
from timing import Paired, paired, show_table
from torchvision import transforms as T

from rayreid.data.augment import colour_cpu, resample_cpu
from rayreid.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD, MultiCrop
from rayreid.data.batch import ImageBatch
from rayreid.data.images import decode

Size = tuple[int, int]
Crops = list[torch.Tensor]
Work = Callable[[Sequence[np.ndarray]], Crops]

# Sizes of the images, the global and the local crops.
SETTINGS: dict[str, tuple[Size, Size, Size]] = {
    "small": ((128, 64), (128, 64), (64, 32)),
    "shrunk": ((256, 128), (128, 64), (64, 32)),
    "recipe": ((256, 128), (256, 128), (128, 64)),
}


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def one_crop(size: Size, scale: tuple[float, float], blur: float, solarize: float) -> Callable[..., torch.Tensor]:
    return T.Compose(
        [
            T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(0.5),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.Lambda(blurred)], p=blur),
            T.RandomSolarize(128, p=solarize),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def image_by_image(global_size: Size, local_size: Size, local_crops: int, arrays: Sequence[np.ndarray]) -> Crops:
    """Crops of images one by one, stacked as a loader would."""
    images = [Image.fromarray(array) for array in arrays]
    first = one_crop(global_size, (0.4, 1.0), 1.0, 0.0)
    second = one_crop(global_size, (0.4, 1.0), 0.1, 0.2)
    local = one_crop(local_size, (0.05, 0.4), 0.5, 0.0)
    outputs = [torch.stack([crop(image) for crop in (first, second) for image in images])]
    if local_crops:
        outputs.append(torch.stack([local(image) for _ in range(local_crops) for image in images]))
    return outputs


def batched(transform: MultiCrop, arrays: Sequence[np.ndarray]) -> Crops:
    return transform(ImageBatch.collate(arrays), [f"{number}.jpg" for number in range(len(arrays))], 0, 0)


def at_once(executor: Executor, work: Work, batches: Sequence[Sequence[np.ndarray]]) -> None:
    """As many batches at a time as the executor has workers; the crops stay with them."""
    for _ in executor.map(partial(done, work), batches):
        pass


def done(work: Work, arrays: Sequence[np.ndarray]) -> int:
    return sum(len(crops) for crops in work(arrays))


def one_thread() -> None:
    torch.set_num_threads(1)


def measure(ours: Work, theirs: Work, arrays: Sequence[np.ndarray], threads: int, repeats: int) -> Paired:
    if threads == 1:
        return paired(partial(ours, arrays), partial(theirs, arrays), repeats)
    batches = [arrays] * threads
    with (
        ThreadPoolExecutor(threads, initializer=one_thread) as pool,
        ProcessPoolExecutor(threads, get_context("forkserver"), initializer=one_thread) as workers,
    ):
        beside = partial(at_once, batches=batches)
        return paired(partial(beside, pool, ours), partial(beside, workers, theirs), repeats)


def show_operations(name: str, work: Callable[[], Crops], batch: int, repeats: int) -> None:
    """Where the time of one thread goes: calls of the compiled loops, and all the rest."""
    spent: dict[str, float] = {}
    loops = {
        "resize": (resample_cpu, "resized_crops"),
        "colour jitter": (colour_cpu, "jitter_"),
        "grayscale": (colour_cpu, "grayscale_"),
        "blur": (resample_cpu, "blur_"),
        "solarize and normalise": (colour_cpu, "finish"),
    }
    originals = {label: getattr(*place) for label, place in loops.items()}

    def timed(label: str, *args: np.ndarray) -> None:
        began = perf_counter()
        originals[label](*args)
        spent[label] = spent.get(label, 0.0) + perf_counter() - began

    for label, (module, function) in loops.items():
        setattr(module, function, partial(timed, label))
    began = perf_counter()
    for _ in range(repeats):
        work()
    total = perf_counter() - began
    for label, (module, function) in loops.items():
        setattr(module, function, originals[label])
    spent["draws, collating, columns"] = total - sum(spent.values())
    print(f"{name}: ms per image of each operation")
    for label, seconds in spent.items():
        print(f"  {label:<26}{1000 * seconds / repeats / batch:7.3f}{seconds / total:7.0%}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["small", "recipe"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--local-crops", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--operations", action="store_true", help="show where our time goes, too")
    args = parser.parse_args()

    one_thread()
    rows, gains = [], []
    for name in args.settings:
        source, *sizes = SETTINGS[name]
        arrays = [decode(data) for data in random_jpegs(args.batch, *source)]
        ours = partial(batched, MultiCrop(*sizes, args.local_crops))
        theirs = partial(image_by_image, *sizes, args.local_crops)
        made = [[part.shape for part in crops] for crops in (ours(arrays), theirs(arrays))]
        assert made[0] == made[1], f"not the same crops: {made}"
        if args.operations:
            show_operations(name, partial(ours, arrays), args.batch, args.repeats)
        for threads in args.threads:
            times = measure(ours, theirs, arrays, threads, args.repeats)
            label = f"{name}, {threads} at once"
            rows.append(times.row(label, "images/s per core", lambda seconds: args.batch / seconds))
            gains.append(f"{label}: {1 / median(times.ratios):.1f} times the baseline's images/s")
    shapes = (f"{name}: {', '.join('x'.join(map(str, size)) for size in SETTINGS[name])}" for name in args.settings)
    show_table(
        f"2 global and {args.local_crops} local crops, batch {args.batch}; sizes of images, global and local crops: "
        f"{'; '.join(shapes)}; baseline: torchvision and Pillow, image by image",
        rows,
        ("torch", "torchvision", "pillow", "numpy", "numba"),
    )
    print("\n" + "\n".join(gains))


if __name__ == "__main__":
    main()
