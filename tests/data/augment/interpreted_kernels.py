"""The GPU's kernels in Triton's interpreter against the CPU's loops; for a process with TRITON_INTERPRET=1."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "platform"))

from rayreid.data.augment import resample_cuda
from rayreid.data.augment.crops import Crops, crop_boxes
from rayreid.data.augment.render import render_compiled, render_fused
from rayreid.data.augment.resample_cpu import pixel_columns, resized_crops
from rayreid.data.batch import ImageBatch

COUNT, MEAN, STD = 8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def compare() -> None:
    """Raise AssertionError where the two differ."""
    rng = np.random.default_rng(0)
    images = ImageBatch.collate([rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 21), (18, 33))])
    image = rng.integers(0, 2, COUNT)
    boxes = crop_boxes(rng.random((COUNT, 40)), images.heights[image], images.widths[image], (0.05, 1.0))
    order = np.argsort(rng.random((COUNT, 4)), 1)
    order[3] = -1
    crops = Crops(
        image,
        *boxes,
        flip=rng.random(COUNT) < 0.5,
        factors=(rng.uniform(-1, 1, (COUNT, 4)) * (0.4, 0.4, 0.2, 0.1) + (1, 1, 1, 0)).astype(np.float32),
        order=order,
        grey=np.arange(COUNT) % 4 == 0,
        radius=np.where(np.arange(COUNT) % 2, rng.uniform(0.1, 2, COUNT), 0),
        solarized=np.zeros(COUNT, bool),
    )
    for size in ((32, 16), (9, 20)):
        there = render_fused(images, crops, size, MEAN, STD)
        here = render_compiled(pixel_columns(images), crops, size, MEAN, STD)
        torch.testing.assert_close(there, here, atol=1e-3, rtol=0)
    bright = replace(crops, solarized=np.ones(COUNT, bool))
    there = render_fused(images, bright, (32, 16), MEAN, STD)
    here = render_compiled(pixel_columns(images), bright, (32, 16), MEAN, STD)
    assert ((there - here).abs() < 1e-3).float().mean() > 0.999
    whole = (np.zeros(2, np.int64), np.zeros(2, np.int64), images.heights, images.widths)
    moved = (np.array([False, True]), np.array([-2, 3]), np.array([4, -1]))
    for interpolation in ("bilinear", "bicubic"):
        shifted = resample_cuda.resized(images, np.arange(2), whole, (16, 12), interpolation, *moved)
        out = np.empty((2, 3, 16, 12), np.float32)
        resized_crops(pixel_columns(images), np.arange(2), *whole, *moved, interpolation == "bicubic", out)
        torch.testing.assert_close(shifted, torch.from_numpy(out), atol=1e-5, rtol=0)
        assert not shifted[0, :, :2].any()
        assert not shifted[0, :, :, -4:].any()
