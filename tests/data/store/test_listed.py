"""Images where they lie."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from rayreid.data.datasets import open_dataset
from rayreid.data.images import BadImageError
from rayreid.data.store.listed import ListedImages
from rayreid.data.store.store import Record
from rayreid.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name, value in (("b.png", 20), ("a/z.png", 10)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        sink = io.BytesIO()
        Image.new("L", (8, 16), value).save(sink, "PNG")
        path.write_bytes(sink.getvalue())
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    return tmp_path


def test_a_folder_has_the_face_of_a_store(folder):
    images = ListedImages(open_dataset("folder", str(folder)))
    assert images.keys.tolist() == ["a/z.png", "b.png", "broken.jpg"] and len(images) == 3
    assert images.pids.tolist() == [-1] * 3 and images.camids.tolist() == [-1] * 3
    assert images.keys_of([1]).to_pylist() == ["b.png"]
    assert images.rows_of_keys(["broken.jpg", "a/z.png"]).tolist() == [2, 0]
    assert images.image(0).shape == (16, 8, 3) and images.image(1)[0, 0, 0] == 20
    again = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(again.image(1), images.image(1))


def test_images_are_turned_as_their_orientation_says(folder):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 20)).save(folder / "c.jpg", exif=exif)
    images = ListedImages(open_dataset("folder", str(folder)))
    (row,) = images.rows_of_keys(["c.jpg"])
    assert images.image(row).shape == (30, 20, 3)


def test_faults_of_several_images_stay_in_their_places(folder):
    images = ListedImages(open_dataset("folder", str(folder)))
    (folder / "b.png").unlink()
    missing, whole, broken = images.decoded([1, 0, 2])
    assert (missing.reason, broken.reason) == ("unreadable: missing", "undecodable")
    assert whole.shape == (16, 8, 3)


def test_faults_are_told_apart(folder):
    images = ListedImages(open_dataset("folder", str(folder)))
    with pytest.raises(UserError, match=r"'broken\.jpg' is undecodable"):
        images.image(2)
    with pytest.raises(UserError, match=r"no image 'zz\.jpg'"):
        images.rows_of_keys(["b.png", "zz.jpg"])
    (folder / "b.png").unlink()
    with pytest.raises(BadImageError, match="unreadable"):
        images.encoded(1)


class Twice:
    name, version, ignored = "twice", "", [("x.jpg", "outside its root")]

    def records(self):
        return [Record("a.jpg", 1, 0, "query", "first"), Record("a.jpg", 2, 0, "gallery", "second")]

    def read(self, record):
        raise OSError(5, "Input/output error")


def test_of_images_with_one_key_in_query_and_gallery_the_first_counts_and_the_other_is_told():
    images = ListedImages(Twice())
    assert images.keys.tolist() == ["a.jpg"] and images.splits.tolist() == ["query"]
    assert images.rejected == {"a.jpg": "duplicate key", "x.jpg": "outside its root"}
    with pytest.raises(UserError, match="the storage does not answer"):
        images.encoded(0)


def test_no_image(tmp_path):
    with pytest.raises(UserError, match="has no image"):
        ListedImages(open_dataset("folder", str(tmp_path)))
