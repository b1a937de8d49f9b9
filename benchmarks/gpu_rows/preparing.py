"""The crops of DINO pre-training, from decoded images."""

import argparse

import numpy as np

from gpu_rows.clock import kernels, seconds_each
from gpu_rows.steps import LOCAL_CROPS, LOCAL_SIZE, SIZE
from rayreid.data.augment.augment import MultiCrop
from rayreid.data.batch import ImageBatch


def measure(args: argparse.Namespace) -> dict[str, float | str]:
    """A batch of 256 images by itself, on one stream."""
    batch = 2 if args.toy else 256
    made = np.random.default_rng(0).integers(0, 256, (batch, *SIZE, 3), dtype=np.uint8)
    images, keys = ImageBatch.collate(list(made)), [str(number) for number in range(batch)]
    there, augment = images.to(args.device), MultiCrop(SIZE, LOCAL_SIZE, LOCAL_CROPS)
    seconds = seconds_each(lambda: augment(there, keys, 0, 0), args.device, 1 if args.toy else 10)
    few = ImageBatch.collate(list(made[:8]))
    pairs = zip(augment(few.to(args.device), keys[:8], 0, 0), augment(few, keys[:8], 0, 0), strict=True)
    difference = max(float((one.cpu() - other).abs().max()) for one, other in pairs)
    table = args.profile / "augment.txt" if args.profile else None
    return {
        "images_s": batch / seconds,
        "milliseconds": 1e3 * seconds,
        **kernels(lambda: augment(there, keys, 0, 0), args.device, table),
        "largest_difference": difference,
        "same": "yes" if difference < 2e-3 else "NO",
    }
