import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rayreid.data.augment.crops import Crops, crop_boxes
from rayreid.data.augment.render import render_batched, render_compiled, render_fused
from rayreid.data.augment.resample import unit_rows
from rayreid.data.augment.resample_cpu import pixel_columns
from rayreid.data.batch import ImageBatch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COUNT = 60


def batch():
    rng = np.random.default_rng(0)
    sizes = [(128, 64), (90, 50), (60, 61)]
    return ImageBatch.collate([rng.integers(0, 256, (*sizes[n % 3], 3), dtype=np.uint8) for n in range(6)])


def crops(images):
    """Every combination of operations, several times."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, len(images), COUNT)
    heights, widths = images.heights[image], images.widths[image]
    order = np.argsort(rng.random((COUNT, 4)), 1)
    order[rng.random(COUNT) < 0.2] = -1
    return Crops(
        image,
        *crop_boxes(rng.random((COUNT, 40)), heights, widths, (0.05, 1.0)),
        flip=rng.random(COUNT) < 0.5,
        factors=(rng.uniform(-1, 1, (COUNT, 4)) * (0.4, 0.4, 0.2, 0.1) + (1, 1, 1, 0)).astype(np.float32),
        order=order,
        grey=rng.random(COUNT) < 0.4,
        radius=np.where(rng.random(COUNT) < 0.5, rng.uniform(0.1, 2, COUNT), 0),
        solarized=np.zeros(COUNT, bool),
    )


@pytest.mark.parametrize("size", [(32, 16), (45, 27), (256, 128)])
def test_both_ways_agree(size):
    images = batch()
    made = [
        render_compiled(pixel_columns(images), crops(images), size, MEAN, STD),
        render_batched(unit_rows(images.frames()), crops(images), size, MEAN, STD),
    ]
    assert made[0].shape == (COUNT, 3, *size)
    torch.testing.assert_close(*made, atol=1e-3, rtol=0)


def test_solarized_crops_agree_but_for_values_at_the_threshold():
    images = batch()
    chosen = replace(crops(images), solarized=np.arange(COUNT) % 2 == 0)
    made = [
        render_compiled(pixel_columns(images), chosen, (32, 16), MEAN, STD),
        render_batched(unit_rows(images.frames()), chosen, (32, 16), MEAN, STD),
    ]
    assert ((made[0] - made[1]).abs() < 1e-3).float().mean() > 0.999


def test_small_chunks_and_threads_change_nothing(monkeypatch):
    images = batch()
    columns, chosen = pixel_columns(images), crops(images)
    whole = render_compiled(columns, chosen, (32, 16), MEAN, STD)
    monkeypatch.setattr("rayreid.data.augment.render._CHUNK_PIXELS", 3 * 32 * 16)
    with ThreadPoolExecutor(2) as pool:
        for again in pool.map(lambda _: render_compiled(columns, chosen, (32, 16), MEAN, STD), range(4)):
            assert torch.equal(again, whole)


def test_some_of_the_crops_are_the_same_crops():
    images = batch()
    chosen, some = crops(images), np.array([50, 3, 20])
    columns = pixel_columns(images)
    whole = render_compiled(columns, chosen, (32, 16), MEAN, STD)
    assert torch.equal(render_compiled(columns, chosen.part(some), (32, 16), MEAN, STD), whole[some])


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(32, 16), (45, 27), (256, 128)])
def test_a_cuda_device_makes_the_same_crops(size):
    images = batch()
    there = render_fused(images.to("cuda"), crops(images), size, MEAN, STD)
    here = render_compiled(pixel_columns(images), crops(images), size, MEAN, STD)
    torch.testing.assert_close(there.cpu(), here, atol=2e-3, rtol=0)


def test_triton_s_interpreter_makes_the_same_crops():
    """The kernels of a GPU, as they run without one."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    folder = Path(__file__).parent
    code = "import interpreted_kernels; interpreted_kernels.compare()"
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, timeout=300)
