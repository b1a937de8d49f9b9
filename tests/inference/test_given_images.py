import numpy as np
import pytest
import torch
from PIL import Image

from rayreid.data.images import BadImageError, decode
from rayreid.errors import UserError
from rayreid.inference.given_images import GivenImages, open_given

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
ORIENTATION = 274


@pytest.fixture
def turned_file(tmp_path):
    """A file that is stored 5x7 and shown 7x5."""
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.rot90(PIXELS)).save(path, exif=exif)
    return path


def one(image) -> np.ndarray:
    (found,) = open_given(image).decoded([0])
    assert not isinstance(found, BadImageError), found
    return found


def test_every_way_to_give_an_image_gives_the_same_pixels(tmp_path, turned_file):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    ways = [
        *(str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(PIXELS), Image.open(tmp_path / "a.png")),
        *(PIXELS, torch.from_numpy(PIXELS).permute(2, 0, 1), turned_file, Image.open(turned_file)),
    ]
    for way in ways:
        np.testing.assert_array_equal(one(way), PIXELS)
    mixed = open_given(ways)
    assert len(mixed) == len(ways)
    assert mixed.keys.tolist() == [str(tmp_path / "a.png")] * 2 + ["2", "3", "4", "5", str(turned_file), "7"]
    assert mixed.keys_of([2, 0]).to_pylist() == ["2", str(tmp_path / "a.png")]
    for image in mixed.decoded(range(len(ways))):
        np.testing.assert_array_equal(image, PIXELS)


def test_batches_are_images_side_by_side():
    arrays = np.stack([PIXELS, PIXELS[::-1]])
    for batch in (arrays, torch.from_numpy(arrays).permute(0, 3, 1, 2)):
        first, second = open_given(batch).decoded([0, 1])
        np.testing.assert_array_equal(first, PIXELS)
        np.testing.assert_array_equal(second, PIXELS[::-1])


def test_grey_images_have_three_equal_channels():
    grey = PIXELS[:, :, 0]
    for way in (grey, grey[:, :, None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        np.testing.assert_array_equal(one(way), np.repeat(grey[..., None], 3, axis=2))


def test_an_image_of_pillow_is_read_as_its_file(tmp_path):
    deep = np.arange(0, 65_520, 1_872, dtype=np.uint16).reshape(7, 5)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = decode((tmp_path / "deep.png").read_bytes())
    np.testing.assert_array_equal(one(Image.open(tmp_path / "deep.png")), expected)
    np.testing.assert_array_equal(one(Image.fromarray(deep)), expected)


def test_a_folder_is_listed_by_key(tmp_path):
    for name in ("b.png", "a.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    assert open_given(tmp_path).keys.tolist() == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no image is given"),
        (np.zeros((0, 7, 5, 3), np.uint8), "no image is given"),
        (3, "int is not an image; give paths"),
        ([PIXELS, b"bytes"], r"images\[1\]: bytes is not an image"),
        (["gone.png"], r"images\[0\]: there is no such image file: gone\.png"),
        ("gone", "gone: there is no such image file, image folder or image store"),
        ("gone.jpg", r"gone\.jpg: there is no such image file"),
        (
            np.array(["a.jpg", "b.jpg"]),
            r"array of <U5 is not an image; give .* as a list, array\.tolist",
        ),
        (np.array(["a.jpg", None]), "an array of object is not an image"),
        (PIXELS / 255, r"images\[0\]: pixels are uint8.*float64.*multiply by 255"),
        (torch.zeros(3, 7, 5), "these are torch.float32"),
        (np.zeros((3, 7, 5), np.uint8), r"an array of shape \(3, 7, 5\) is not an image \(H, W, 3\)"),
        (torch.zeros(7, 5, 3, dtype=torch.uint8), r"a tensor of shape \(7, 5, 3\) is not an image \(3, H, W\)"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
    ],
    ids=str,
)
def test_what_is_no_image_is_refused_in_one_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        open_given(given)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_decoded_is_an_error_of_its_image_alone(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    bad, whole, empty = GivenImages([tmp_path / "bad.jpg", PIXELS, Image.new("RGB", (0, 4))]).decoded([0, 1, 2])
    assert isinstance(bad, BadImageError)
    np.testing.assert_array_equal(whole, PIXELS)
    assert isinstance(empty, BadImageError)
    assert empty.reason == "zero-size"
