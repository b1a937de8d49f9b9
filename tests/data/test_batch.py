import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rayreid.data.augment.augment import MultiCrop
from rayreid.data.augment.reid_transforms import ReIDTest
from rayreid.data.batch import ImageBatch
from rayreid.data.images import decode


def drawn(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """A whole photograph that lies among crops."""
    buffer = io.BytesIO()
    Image.fromarray(drawn(75, 100)).resize((4000, 3000)).save(buffer, "JPEG")
    return decode(buffer.getvalue())


def test_a_batch_takes_the_bytes_of_its_pixels(photograph):
    crops = [drawn(60 + 10 * number, 30, number) for number in range(31)]
    batch = ImageBatch.collate([*crops, photograph])
    assert batch.pixels.numel() == 3000 * 4000 * 3 + sum(crop.size for crop in crops)
    for number, image in enumerate([*crops, photograph]):
        np.testing.assert_array_equal(batch.image(number), image)


def test_a_photograph_among_crops_changes_nothing_about_them(photograph):
    crops = [drawn(128, 64, number) for number in range(3)]
    keys = ["a", "b", "c", "photograph"]
    alone, beside = (ImageBatch.collate(images) for images in (crops, [*crops, photograph]))
    transform = ReIDTest((64, 32), (0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(transform(beside)[:3], transform(alone), rtol=0, atol=0)
    multi = MultiCrop((64, 32), (32, 16), 2)
    for ours, theirs in zip(multi(beside, keys, 0, 0), multi(alone, keys[:3], 0, 0), strict=True):
        ours, theirs = (crops.unflatten(0, (-1, count)) for crops, count in ((ours, 4), (theirs, 3)))
        torch.testing.assert_close(ours[:, :3], theirs, rtol=0, atol=0)


WITHIN = """
import resource
import numpy as np, torch
torch.set_num_threads(1)
from rayreid.data.augment.augment import MultiCrop
from rayreid.data.augment.reid_transforms import ReIDTest
from rayreid.data.batch import ImageBatch
images = [np.full((128, 64, 3), 99, np.uint8)] * 63 + [np.full((3000, 4000, 3), 99, np.uint8)]
batch = ImageBatch.collate(images)
few = ImageBatch.collate(images[:2])
multi, test = MultiCrop((64, 32), (32, 16), 2), ReIDTest((64, 32), (0.5,) * 3, (0.5,) * 3)
multi(few, ["a", "b"], 0, 0); test(few)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
multi(batch, [str(number) for number in range(64)], 0, 0); test(batch)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in other units elsewhere")
def test_a_photograph_among_crops_takes_the_memory_of_its_own_pixels():
    """A frame of its size for each of 64 images would take 2,200 MiB; in float32, four times that."""
    done = subprocess.run([sys.executable, "-c", WITHIN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 600


def test_the_brightness_is_the_mean_of_each_image():
    images = [np.full((3, 2, 3), 255, np.uint8), np.arange(12, dtype=np.uint8).reshape(2, 2, 3)]
    np.testing.assert_allclose(ImageBatch.collate(images).brightness(), [1.0, 5.5 / 255], rtol=1e-6)
