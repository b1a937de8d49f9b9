import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from rayreid.data import images
from rayreid.data.batch import ImageBatch
from rayreid.data.images import MAX_SIDE, BadImageError, Header, decode, examine, orientation_of


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
    assert examine(data, decoding=False) == examine(data, decoding=True) == Header(40, 24, 1)


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_image_is_turned_as_its_exif_orientation_says(pixels, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels, format, exif=exif)
    opened = Image.open(io.BytesIO(data))
    opened.load()
    upright = np.array(ImageOps.exif_transpose(opened))
    header = examine(data, decoding=True)
    np.testing.assert_array_equal(decode(data, header.orientation), upright)
    assert header == examine(data, decoding=False)
    assert (header.height, header.width) == upright.shape[:2] == ((40, 24) if orientation < 5 else (24, 40))
    assert orientation_of(data) == header.orientation == (1 if format == "TIFF" else orientation)


def test_pixels_are_left_as_they_are_stored_unless_the_orientation_is_given(pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(encoded(pixels, "JPEG", exif=exif)).shape == (40, 24, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_invalid_orientation_and_damaged_metadata_count_as_none(pixels, value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert orientation_of(encoded(pixels, "JPEG", exif=exif)) == 1
    damaged = encoded(pixels, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert examine(damaged, decoding=True) == Header(40, 24, 1)


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_bytes_that_are_no_image_have_no_orientation(data):
    assert orientation_of(data) == 1


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
    for function in (decode, lambda data: examine(data, decoding=False)):
        with pytest.raises(ValueError, match=reason):
            function(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<!DOCTYPE html><title>404</title>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\0\5\x16\7" + bytes(90), "AppleDouble file"),
        (b"PK\3\4" + bytes(60), "zip archive"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC image (no reader)"),
    ],
)
def test_what_lies_in_the_place_of_an_image_is_named(data, reason):
    with pytest.raises(BadImageError) as error:
        decode(data)
    assert error.value.reason == reason


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_large_images_are_refused():
    for shape in ((1, MAX_SIDE + 1), (9500, 9500)):
        buffer = io.BytesIO()
        Image.new("1", shape).save(buffer, "PNG")
        with pytest.raises(BadImageError, match="too many pixels"):
            examine(buffer.getvalue(), decoding=False)
        with pytest.raises(BadImageError, match="too many pixels"):
            decode(buffer.getvalue())


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_of_sixteen_bits_the_upper_eight_are_kept(pixels, format):
    grey = pixels[..., 0]
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(encoded(deep, format)), np.repeat(grey[..., None], 3, axis=2))


def tiff_of_12_bits(grey: np.ndarray) -> bytes:
    """An uncompressed grey TIFF: Pillow cannot write this kind."""
    height, width = grey.shape
    data = int("".join(f"{value:012b}" for value in grey.flat), 2).to_bytes(grey.size * 12 // 8, "big")
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_of_twelve_bits_in_a_tiff_the_upper_eight_are_kept():
    eight = np.arange(16, dtype=np.uint16).reshape(4, 4) * 16 + 5
    data = tiff_of_12_bits(eight * 16 + 3)
    np.testing.assert_array_equal(decode(data), np.repeat(eight[..., None], 3, axis=2))
    assert examine(data, decoding=True) == Header(4, 4, 1)


@pytest.mark.parametrize("most", [65535, 4095])
def test_a_pgm_of_more_than_eight_bits_is_read(pixels, most):
    grey = pixels[..., 0].astype(np.uint32)
    deep = (grey * most // 255).astype(">u2")
    data = b"P5\n24 40\n%d\n" % most + deep.tobytes()
    difference = decode(data).astype(int) - np.repeat(grey[..., None], 3, axis=2)
    assert np.abs(difference).max() <= 1


def test_more_than_sixteen_bits_are_refused_rather_than_clipped():
    with pytest.raises(BadImageError, match="undecodable"):
        decode(encoded(np.full((4, 4), 70_000, dtype=np.int32), "TIFF"))


@pytest.mark.parametrize(("format", "options"), [("AVIF", {"quality": 90}), ("JPEG2000", {})])
def test_newer_formats_are_read(pixels, format, options):
    smooth = np.array(Image.fromarray(pixels[:3, :2]).resize((24, 40), Image.Resampling.BICUBIC))
    image = decode(encoded(smooth, format, **options))
    assert image.shape == (40, 24, 3) and abs(image.astype(int) - smooth).mean() < 6


def test_without_its_reader_avif_is_refused_and_others_are_read(pixels, monkeypatch):
    monkeypatch.setattr(images, "FORMATS", tuple(name for name in images.FORMATS if name != "AVIF"))
    np.testing.assert_array_equal(decode(encoded(pixels)), pixels)
    with pytest.raises(BadImageError, match="undecodable"):
        decode(encoded(pixels, "AVIF"))


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
