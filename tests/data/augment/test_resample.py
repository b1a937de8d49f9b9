import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode

from rayreid.data.augment.resample import (
    apply_separable,
    blur,
    blur_matrices,
    gaussian_box_radius,
    resize_matrices,
    unit_rows,
)

PIL_MODES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
BOXES = [(0, 0, 61, 40), (5, 3, 20, 31), (30, 11, 9, 4), (60, 39, 1, 1), (0, 20, 61, 7)]
SIZES = [(64, 32), (24, 13), (7, 50)]


def picture(height, width, seed=0):
    """Smooth shapes plus noise; mild enough that Pillow need not clip between its two passes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = 127 + 75 * np.sin(y[..., None] / 7 + np.arange(3)) * np.cos(x[..., None] / 5)
    return np.clip(base + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def planes(rows):
    return rows.transpose(1, 2).contiguous()


def crops(image, size, interpolation, **options):
    boxes = np.array(BOXES).T
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.pad(pixels, (0, 6, 0, 9), value=200)  # what must not bleed in
    rows = resize_matrices(boxes[0], boxes[2], pixels.shape[2], size[0], interpolation)
    columns = resize_matrices(boxes[1], boxes[3], pixels.shape[3], size[1], interpolation, **options)
    source = unit_rows(pixels).expand(len(BOXES), -1, -1, -1).contiguous()
    return planes(apply_separable(source, rows, columns))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_resized_crop_is_torchvisions(interpolation, size):
    image = picture(61, 40)
    ours = crops(image, size, interpolation)
    floats = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    for got, (top, left, h, w) in zip(ours, BOXES, strict=True):
        want = TF.resized_crop(floats, top, left, h, w, list(size), InterpolationMode(interpolation), antialias=True)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_resized_crop_is_pillows(interpolation, size):
    image = picture(61, 40)
    ours = crops(image, size, interpolation).clamp(0, 1)
    for got, (top, left, h, w) in zip(ours, BOXES, strict=True):
        cut = Image.fromarray(image).crop((left, top, left + w, top + h))
        want = np.asarray(cut.resize(size[::-1], PIL_MODES[interpolation]), np.float32) / 255
        # Pillow rounds to 8 bits after each of its two passes.
        np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), want, atol=1.5 / 255)


def test_flip_mirrors_the_chosen_images_only():
    image = picture(61, 40)
    flip = np.array([True, False, True, False, True])
    plain, flipped = crops(image, (24, 13), "bicubic"), crops(image, (24, 13), "bicubic", flip=flip)
    torch.testing.assert_close(flipped[flip], plain[flip].flip(3))
    torch.testing.assert_close(flipped[~flip], plain[~flip])
    assert not torch.allclose(flipped[0], plain[0], atol=0.05)


def test_shift_brings_in_black():
    image = picture(61, 40)
    shift = np.array([0, 3, -3, 1, -13])
    plain, shifted = crops(image, (24, 13), "bicubic"), crops(image, (24, 13), "bicubic", shift=shift)
    padded = torch.nn.functional.pad(plain, (13, 13))
    for number, by in enumerate(shift):
        torch.testing.assert_close(shifted[number], padded[number, :, :, 13 + by : 26 + by])
    assert not shifted[4].any()


def test_weights_sum_to_one_and_stay_inside():
    weights = resize_matrices(np.array([4, 0]), np.array([10, 30]), 40, 8)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 8))
    assert not weights[0, :, :4].any()
    assert not weights[0, :, 14:].any()


def box_blurs(image, sigma, rounding):
    """Pillow's GaussianBlur written naively: three box blurs along each axis, ends replicated."""
    radius = float(gaussian_box_radius(np.array(sigma)))
    reach = int(radius) + 1
    for axis in (1, 1, 1, 0, 0, 0):
        line = np.arange(image.shape[axis])
        image = rounding(
            sum(
                max(0, min(1, radius + 1 - abs(d))) / (2 * radius + 1) * image.take((line + d).clip(0, line[-1]), axis)
                for d in range(-reach, reach + 1)
            )
        )
    return image


@pytest.mark.parametrize("size", [(40, 24), (9, 70), (128, 64)])
def test_blur_is_pillows(size):
    """Pillow rounds to 8 bits after each of six passes, which for small radii costs it up to 4 grey levels: so the
    naive version is compared with Pillow with that rounding, and with ours without it.
    """
    image = picture(*size)
    radius = np.array([0.1, 0.35, 0.9, 1.3, 1.7, 2.0, 5.0])
    source = unit_rows(torch.from_numpy(image).permute(2, 0, 1)[None]).repeat(len(radius), 1, 1, 1)
    # The largest radius of the batch decides how the work is cut up; the results must not depend on it.
    for chosen in (slice(0, 2), slice(0, 6), slice(0, 7)):
        ours = 255 * blur(source[chosen].contiguous(), radius[chosen]).permute(0, 1, 3, 2).numpy()
        for got, r in zip(ours, radius[chosen], strict=True):
            pillow = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(r))), float)
            np.testing.assert_allclose(box_blurs(image / 1.0, r, np.rint), pillow, atol=2)
            np.testing.assert_allclose(box_blurs(image / 1.0, r, np.asarray), got, atol=1e-3)
            np.testing.assert_allclose(got, pillow, atol=2 if r > 1 else 4)
    assert np.abs(ours[-2] - image).max() > 25


def test_blur_matrices_keep_a_flat_line_flat():
    weights = blur_matrices(np.array([0.1, 1.0, 2.0]), 100)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 100))
    assert weights.min() >= 0


def test_box_radius_gives_the_variance():
    """Three boxes of this radius have the variance asked for (Gwosdek et al., eq. 6-14)."""
    sigma = np.array([0.3, 1.0, 2.0, 7.5])
    for s, r in zip(sigma, gaussian_box_radius(sigma), strict=True):
        offsets = np.arange(-20, 21)
        weights = np.clip(r + 1 - np.abs(offsets), 0, 1) / (2 * r + 1)
        assert 3 * (weights * offsets**2).sum() == pytest.approx(s**2)
