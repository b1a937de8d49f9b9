"""Multi-crop augmentation of a batch against the same crops made image by image with torchvision and Pillow."""

import argparse
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from pictures import random_jpegs
from PIL import Image, ImageFilter
from timing import paired, show_table
from torchvision import transforms as T

from rayreid.data.augment import IMAGENET_MEAN, IMAGENET_STD, MultiCrop
from rayreid.data.batch import ImageBatch
from rayreid.data.images import decode

Size = tuple[int, int]


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


def baseline(global_size: Size, local_size: Size, local_crops: int) -> Callable[[Sequence[Image.Image]], list]:
    """Crops of images one by one, stacked as a loader would."""
    first = one_crop(global_size, (0.4, 1.0), 1.0, 0.0)
    second = one_crop(global_size, (0.4, 1.0), 0.1, 0.2)
    local = one_crop(local_size, (0.05, 0.4), 0.5, 0.0)

    def crops_of(images: Sequence[Image.Image]) -> list[torch.Tensor]:
        outputs = [torch.stack([crop(image) for crop in (first, second) for image in images])]
        if local_crops:
            outputs.append(torch.stack([local(image) for _ in range(local_crops) for image in images]))
        return outputs

    return crops_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default, what in (
        ("--source-size", (256, 128), "the images"),
        ("--global-size", (128, 64), "the two global crops"),
        ("--local-size", (64, 32), "the local crops"),
    ):
        metavar = ("HEIGHT", "WIDTH")
        parser.add_argument(name, type=int, nargs=2, metavar=metavar, default=default, help=f"of {what}")
    parser.add_argument("--local-crops", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    torch.set_num_threads(1)
    global_size, local_size = tuple(args.global_size), tuple(args.local_size)
    arrays: list[np.ndarray] = [decode(data) for data in random_jpegs(args.batch, *args.source_size)]
    images = [Image.fromarray(array) for array in arrays]
    keys = [f"{number}.jpg" for number in range(args.batch)]
    ours = MultiCrop(global_size, local_size, args.local_crops)
    theirs = baseline(global_size, local_size, args.local_crops)
    made = [[part.shape for part in crops] for crops in (ours(ImageBatch.collate(arrays), keys, 0, 0), theirs(images))]
    assert made[0] == made[1], f"not the same crops: {made}"

    times = paired(lambda: ours(ImageBatch.collate(arrays), keys, 0, 0), lambda: theirs(images), args.repeats)
    show_table(
        f"2 crops {global_size[0]}x{global_size[1]} and {args.local_crops} crops {local_size[0]}x{local_size[1]} of "
        f"decoded images {args.source_size[0]}x{args.source_size[1]}, batch {args.batch}, one thread; "
        "baseline: torchvision and Pillow, image by image",
        [times.row("MultiCrop", "ms/image", lambda seconds: 1000 * seconds / args.batch)],
        ("torch", "torchvision", "pillow", "numpy"),
    )


if __name__ == "__main__":
    main()
