import io

import numpy as np
import pytest
import torch
from PIL import Image

from rayreid.data.batch import ImageBatch
from rayreid.data.images import MAX_SIDE, BadImageError, decode, read_size


def encoded(pixels: np.ndarray, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_back(pixels, format):
    data = encoded(pixels, format)
    np.testing.assert_array_equal(decode(data), pixels)
    np.testing.assert_array_equal(decode(memoryview(data)), pixels)
    assert read_size(data) == (40, 24)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_decode_to_rgb(pixels, format):
    image = decode(encoded(pixels, format))
    assert image.shape == (40, 24, 3)
    assert image.dtype == np.uint8


def test_grey_palette_and_alpha_become_rgb(pixels):
    grey = pixels[..., 0]
    np.testing.assert_array_equal(decode(encoded(grey)), np.repeat(grey[..., None], 3, axis=2))
    assert decode(encoded(np.dstack([pixels, grey]))).shape == (40, 24, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("P").save(buffer, "PNG")
    assert decode(buffer.getvalue()).shape == (40, 24, 3)


def test_exif_orientation_is_ignored(pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(encoded(pixels, "JPEG", exif=exif)).shape == (40, 24, 3)


def test_decoded_pixels_can_be_written_to(pixels):
    decode(encoded(pixels))[:] = 0


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_truncated_jpeg_is_noticed(pixels, kept, progressive):
    data = encoded(pixels, "JPEG", progressive=progressive)
    with pytest.raises(BadImageError) as error:
        decode(data[: int(kept * len(data))])
    assert error.value.reason == "truncated"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero-size"),
        (b"this is a text, not an image\n" * 20, "undecodable"),
        (b"\xff\xd8\xff", "undecodable"),
    ],
)
def test_what_is_no_image_is_a_value_error_with_its_reason(data, reason):
    for function in (decode, read_size):
        with pytest.raises(ValueError, match=reason):
            function(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_large_images_are_refused():
    for shape in ((1, MAX_SIDE + 1), (9500, 9500)):
        buffer = io.BytesIO()
        Image.new("1", shape).save(buffer, "PNG")
        with pytest.raises(BadImageError, match="too many pixels"):
            read_size(buffer.getvalue())
        with pytest.raises(BadImageError, match="too many pixels"):
            decode(buffer.getvalue())


def test_more_than_eight_bits_are_refused_rather_than_clipped():
    deep = np.full((4, 4), 3000, dtype=np.uint16)
    with pytest.raises(BadImageError, match="undecodable"):
        decode(encoded(deep))


SHAPES = ((5, 3, 3), (2, 7, 3), (1, 1, 3))


def images_of_several_sizes():
    rng = np.random.default_rng(1)
    return [rng.integers(1, 256, shape, dtype=np.uint8) for shape in SHAPES]


def test_collate_keeps_no_more_than_the_pixels():
    images = images_of_several_sizes()
    batch = ImageBatch.collate(images)
    assert batch.pixels.shape == (sum(image.size for image in images),)
    assert batch.pixels.dtype == torch.uint8
    assert len(batch) == 3
    assert batch.heights.tolist() == [5, 2, 1]
    assert batch.widths.tolist() == [3, 7, 1]
    for number, image in enumerate(images):
        np.testing.assert_array_equal(batch.image(number).numpy(), image)


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (0, 1), (1, 3), (2, 9)])
def test_part_of_a_batch_is_a_view_of_those_images(start, stop):
    images = images_of_several_sizes()
    batch = ImageBatch.collate(images)
    part = batch.part(start, stop)
    assert len(part) == len(images[start:stop])
    assert part.pixels.numel() == sum(image.size for image in images[start:stop])
    for number, image in enumerate(images[start:stop]):
        np.testing.assert_array_equal(part.image(number).numpy(), image)
    part.pixels.zero_()
    assert not batch.image(start).any()


def test_frames_pad_with_zeros():
    images = images_of_several_sizes()
    frames = ImageBatch.collate(images).frames()
    assert frames.shape == (3, 3, 5, 7)
    assert frames.is_contiguous()
    for image, frame in zip(images, frames.numpy(), strict=True):
        height, width = image.shape[:2]
        np.testing.assert_array_equal(frame[:, :height, :width], image.transpose(2, 0, 1))
        assert not frame[:, height:].any()
        assert not frame[:, :, width:].any()


def test_batch_moves_as_a_whole():
    batch = ImageBatch.collate([np.ones((2, 2, 3), dtype=np.uint8)]).to("meta")
    assert (batch.pixels.device.type, len(batch)) == ("meta", 1)


def test_collate_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        ImageBatch.collate([])
