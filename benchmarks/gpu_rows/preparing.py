"""The crops of DINO pre-training, from decoded images."""

import argparse
from collections.abc import Iterator

import numpy as np

from gpu_rows.clock import kernels, seconds_each
from gpu_rows.part import Part, Values, agreement
from gpu_rows.steps import LOCAL_CROPS, case
from rayreid.data.augment.augment import MultiCrop
from rayreid.data.batch import ImageBatch


def measure(args: argparse.Namespace) -> Iterator[Part]:
    """A batch of 256 images by itself, on one stream."""
    batch, one = 2 if args.toy else 256, case(args, "vit_small", "patchify")
    made = np.random.default_rng(0).integers(0, 256, (batch, *one.size, 3), dtype=np.uint8)
    images, keys = ImageBatch.collate(list(made)), [str(number) for number in range(batch)]
    there, augment = images.to(args.device), MultiCrop(one.size, one.local_size, LOCAL_CROPS)

    def rate() -> Values:
        seconds = seconds_each(lambda: augment(there, keys, 0, 0), args.device, 1 if args.toy else 10)
        return {"images_s": batch / seconds, "milliseconds": 1e3 * seconds}

    def like_the_cpu() -> Values:
        few = ImageBatch.collate(list(made[:8]))
        pairs = zip(augment(few.to(args.device), keys[:8], 0, 0), augment(few, keys[:8], 0, 0), strict=True)
        difference = max(float((one.cpu() - other).abs().max()) for one, other in pairs)
        return {"largest_difference": difference, **agreement(difference < 2e-3)}

    table = args.profile / "augment.txt" if args.profile else None
    yield "rate", rate
    yield "device", lambda: kernels(lambda: augment(there, keys, 0, 0), args.device, table)
    yield "like_the_cpu", like_the_cpu
