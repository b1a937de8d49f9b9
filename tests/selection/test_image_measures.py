"""Measures of the quality of images: their definitions on images made for them, and what damaged files give."""

import io

import numpy as np
import pytest
from PIL import Image

from rayreid.data.images import decode
from rayreid.selection.image_measures import MEASURES, RANGES, jpeg_quality, measures_of


def encoded(pixels, kind="JPEG", **options):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def plain(height=128, width=64, colour=(90, 120, 60)):
    return np.full((height, width, 3), colour, np.uint8)


def noise(height=128, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def measured(pixels, data=b""):
    return dict(zip(MEASURES, measures_of(pixels, data).tolist(), strict=True))


def image_measures(data):
    return measures_of(decode(data), data)


def test_every_measure_has_a_range_and_noise_lies_within():
    assert set(MEASURES) == set(RANGES)
    found = dict(zip(MEASURES, image_measures(encoded(noise())).tolist(), strict=True))
    assert all(RANGES[name][0] <= value <= RANGES[name][1] for name, value in found.items())
    checks = np.indices((20, 20)).sum(0) % 2 * np.uint8(255)
    assert measured(np.stack([checks] * 3, axis=-1))["sharpness"] == pytest.approx(RANGES["sharpness"][1])


def test_a_plain_image_has_no_detail_and_is_all_border():
    found = measured(plain())
    assert (found["height"], found["aspect"]) == (128, 2)
    assert found["sharpness"] == pytest.approx(0, abs=1e-6) and found["contrast"] == pytest.approx(0, abs=1e-6)
    assert found["brightness"] == pytest.approx(270 / 3 / 255)
    assert found["saturation"] == pytest.approx(0.5)
    assert found["border"] == 1
    assert np.isnan(found["jpeg_quality"])


def test_contrast_and_sharpness_are_those_of_the_formula():
    pixels = noise()
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    padded = np.pad(luma, 1, mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * luma
    found = measured(pixels)
    assert found["contrast"] == pytest.approx(luma.std() / 255, rel=1e-5)
    assert found["sharpness"] == pytest.approx(laplacian[1:-1, 1:-1].var(), rel=1e-5)


def test_saturation_is_that_of_hsv_and_black_has_none():
    grey, black, red = plain(colour=(80, 80, 80)), plain(colour=(0, 0, 0)), plain(colour=(255, 0, 0))
    assert [measured(one)["saturation"] for one in (grey, black, red)] == [0, 0, 1]


def test_images_without_inner_pixels_have_no_sharpness():
    assert np.isnan(measured(noise(2, 30))["sharpness"]) and np.isfinite(measured(noise(3, 3))["sharpness"])
    assert measured(noise(1, 1))["border"] == 1


def test_the_border_is_the_area_of_uniform_bands():
    pixels = noise()
    assert measured(pixels)["border"] == 0
    pixels[:16] = (0, 0, 0)
    pixels[-16:] = (255, 255, 255)
    assert measured(pixels)["border"] == 0.25
    pixels[16:-16, :8] = (30, 30, 200)
    assert measured(pixels)["border"] == pytest.approx(1 - 96 * 56 / (128 * 64))


def test_the_border_survives_compression_and_one_odd_pixel():
    pixels = noise()
    pixels[:32] = (10, 10, 10)
    assert image_measures(encoded(pixels, quality=75))[MEASURES.index("border")] == pytest.approx(0.25, abs=0.01)
    pixels[3, 5] = 255
    assert measured(pixels)["border"] == 0.25
    pixels[3, 6] = 255
    assert measured(pixels)["border"] == 3 / 128


def test_a_gradient_is_no_border_beyond_its_first_rows():
    ramp = np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[:, None], 64, axis=1)
    assert measured(np.stack([ramp] * 3, axis=-1))["border"] == 18 / 128  # 16 levels above 0, and below 254


@pytest.mark.parametrize("quality", [1, 10, 37, 49, 50, 75, 90, 95, 100])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"optimize": True}])
def test_the_quality_of_a_jpeg_is_the_one_it_was_saved_with(quality, options):
    assert jpeg_quality(encoded(noise(16, 16), quality=quality, **options)) == quality
    signed = memoryview(encoded(noise(16, 16), quality=quality, **options)).cast("b")  # as Arrow gives them
    assert jpeg_quality(signed) == quality


def test_the_quality_is_found_behind_metadata_and_in_a_shared_segment():
    data = encoded(noise(16, 16), quality=60, exif=b"Exif\0\0" + b"\xff\xdb\0\x43\0" * 100)
    assert jpeg_quality(data) == 60
    start = data.index(b"\xff\xdb", data.index(b"\xff\xe1") + 508)
    chroma = b"\x01" + bytes([99] * 64)
    luminance = data[start + 4 : start + 69]
    both = b"\xff\xdb" + (2 + 130).to_bytes(2, "big") + chroma + luminance
    assert jpeg_quality(data[:2] + b"\xff" + both + data[2:]) == 60  # also after a byte that fills


def test_tables_of_16_bits_count():
    wide = b"\xff\xd8\xff\xdb" + (2 + 129).to_bytes(2, "big") + b"\x10" + b"\x02\x00" * 64
    assert jpeg_quality(wide) == 1


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xdb\x00", b"\xff\xd8\xff\xdb\0\x43\0abc", b"no image"]
)
def test_what_is_no_jpeg_has_no_quality(data):
    assert np.isnan(jpeg_quality(data))


def test_no_cut_of_a_jpeg_is_an_error():
    data = encoded(noise(16, 8), quality=80)
    found = [jpeg_quality(data[:end]) for end in range(len(data))]
    assert np.isnan(found[:60]).all() and set(found[-60:]) == {80}


def test_other_formats_lack_the_quality_alone():
    found = image_measures(encoded(noise(), "PNG"))
    assert [name for name, value in zip(MEASURES, found, strict=True) if np.isnan(value)] == ["jpeg_quality"]


def test_a_blurred_image_is_less_sharp():
    image = Image.fromarray(noise(32, 16)).resize((64, 128), Image.Resampling.BICUBIC)
    small = np.asarray(image)
    assert measured(small)["sharpness"] < 0.1 * measured(noise())["sharpness"]
