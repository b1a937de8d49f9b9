import io

import numpy as np
import pytest
from PIL import Image

from rayreid.data.images import MAX_SIDE, BadImageError, decode
from rayreid.data.jpeg import _decoder, _is_plain, decode_images


def decode_image(data, orientation=1):
    (image,) = decode_images([data], [orientation])
    if isinstance(image, BadImageError):
        raise image
    return image


def jpeg(mode="RGB", size=(41, 23), **options):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 9, len(mode) if mode != "L" else 1), dtype=np.uint8).squeeze()
    stream = io.BytesIO()
    Image.fromarray(coarse, mode).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", **options)
    return stream.getvalue()


PLAIN = {
    "baseline": jpeg(),
    "progressive": jpeg(progressive=True),
    "grey": jpeg("L"),
    "without subsampling": jpeg(subsampling=0, quality=95),
    "one pixel": jpeg(size=(1, 1)),
    "optimised": jpeg(optimize=True, quality=30),
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_plain_jpegs_decode_as_pillow_decodes_them(data):
    raw = np.frombuffer(data, np.uint8)
    assert _is_plain(raw)
    (pixels,) = _decoder()([raw])
    np.testing.assert_array_equal(pixels, decode(data))
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(decode_image(memoryview(data)), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_image_of_a_batch_is_turned_by_its_own_orientation(orientation):
    files = [*PLAIN.values(), png(), jpeg("CMYK")]
    turned = decode_images(files, [orientation] * len(files))
    for data, pixels in zip(files, turned, strict=True):
        np.testing.assert_array_equal(pixels, decode(data, orientation))
        assert pixels.flags.c_contiguous
    first, second = decode_images(files[:2], [1, orientation])
    np.testing.assert_array_equal(first, decode(files[0]))
    np.testing.assert_array_equal(second, decode(files[1], orientation))


def png():
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), (1, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("data", [jpeg("CMYK"), png()], ids=["CMYK", "PNG"])
def test_other_images_are_left_to_pillow(data):
    assert not _is_plain(np.frombuffer(data, np.uint8))
    np.testing.assert_array_equal(decode_image(data), decode(data))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", jpeg()[:400], jpeg()[:-30], b"<html>"])
def test_broken_bytes_raise_what_pillow_s_reader_raises(data):
    with pytest.raises(BadImageError) as expected:
        decode(data)
    with pytest.raises(BadImageError) as raised:
        decode_image(data)
    assert raised.value.reason == expected.value.reason


def test_a_size_that_the_index_cannot_hold_is_not_decoded():
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 7] = (MAX_SIDE + 1).to_bytes(2, "big")
    assert not _is_plain(np.frombuffer(bytes(data), np.uint8))
    with pytest.raises(BadImageError, match="too many pixels"):
        decode_image(bytes(data))


def test_flipped_bytes_change_nothing_but_what_pillow_changes():
    rng = np.random.default_rng(0)
    for _ in range(100):
        data = bytearray(PLAIN["baseline"])
        data[rng.integers(2, len(data))] ^= int(rng.integers(1, 256))
        try:
            expected = decode(bytes(data))
        except BadImageError:
            with pytest.raises(BadImageError):
                decode_image(bytes(data))
        else:
            np.testing.assert_array_equal(decode_image(bytes(data)), expected)
