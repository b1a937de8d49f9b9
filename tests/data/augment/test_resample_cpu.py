import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import InterpolationMode

from rayreid.data.augment import resample
from rayreid.data.augment.resample_cpu import blur_, pixel_columns, resized_crops
from rayreid.data.batch import ImageBatch

BOXES = [(0, 0, 61, 40), (5, 3, 20, 31), (30, 11, 9, 4), (60, 39, 1, 1), (0, 20, 61, 7), (59, 37, 2, 3)]


def pictures(count, height, width):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("size", [(64, 32), (24, 13), (7, 50), (1, 1), (200, 150)])
def test_resized_crop_is_torchvisions(size):
    pixels = pictures(2, 61, 40)
    image = np.array([0, 1, 1, 0, 1, 1])
    tops, lefts, heights, widths = (np.array(values) for values in zip(*BOXES, strict=True))
    flip = np.array([False, True, False, True, False, False])
    out = np.empty((len(BOXES), 3, *size), np.float32)
    unmoved = np.zeros(len(BOXES), np.int64)
    columns = pixel_columns(ImageBatch.collate(list(pixels.permute(0, 2, 3, 1).numpy())))
    resized_crops(columns, image, tops, lefts, heights, widths, flip, unmoved, unmoved, True, out)
    for got, number, box, mirrored in zip(torch.from_numpy(out), image, BOXES, flip, strict=True):
        floats = pixels[number].float() / 255
        want = TF.resized_crop(floats, *box, list(size), InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        torch.testing.assert_close(got, want.flip(2) if mirrored else want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(40, 24), (9, 70), (128, 64), (3, 2)])
def test_blur_is_the_matrix_products(size):
    """Which is Pillow's: `test_resample.py`."""
    radius = np.array([0.1, 0.0, 0.35, 1.3, 2.0, 5.0])
    images = pictures(len(radius), *size).float() / 255
    grey = np.array([False, False, True, False, True, False])
    got = images.clone()
    blur_(got.numpy(), radius, grey)
    want = resample.blur(images.transpose(1, 2).contiguous(), radius).transpose(1, 2)
    want = torch.where(torch.from_numpy(radius > 0)[:, None, None, None], want, images)
    colour = torch.from_numpy(~grey)
    torch.testing.assert_close(got[:, 0], want[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[colour], want[colour], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[~colour, 1:], images[~colour, 1:], atol=0, rtol=0)
