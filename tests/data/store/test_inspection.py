import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayreid.data.store.inspection import Spread, captions, sample_images, sample_rows, summarise
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard

# key, pid, camid, split, height, width
IMAGES = [
    ("a.jpg", 7, 3, "train", 30, 12),
    ("b.jpg", 7, 1, "train", 20, 20),
    ("c.jpg", 9, 3, "train", 26, 14),
    ("d.jpg", -1, 3, "gallery", 22, 13),
    ("e.jpg", 9, -1, "gallery", 48, 10),
    ("f.jpg", -1, -1, "pool", 24, 11),
]


def jpeg(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (height, width, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def directory(tmp_path) -> Path:
    """Six images in shards of four and three, one file of which is empty; one name was ignored by the dataset."""
    bytes_of = {key: jpeg(height, width) for key, _, _, _, height, width in IMAGES} | {"g.jpg": b""}
    records = [Record(key, pid, camid, split, key) for key, pid, camid, split, _, _ in IMAGES]
    records.append(Record("g.jpg", 11, 5, "train", "g.jpg"))
    for shard, part in enumerate((records[:4], records[4:])):
        write_shard(tmp_path / "store", shard, part, lambda record: bytes_of[record.path])
    finish_store(tmp_path / "store", 2, "mine", "V2", ignored=[("h.jpg", "a name")], left_out={"file .txt": 3})
    return tmp_path / "store"


def test_the_figures_of_a_store(directory):
    store = ImageStore(directory)
    summary = summarise(store)
    assert (summary.dataset, summary.version, summary.fingerprint) == ("mine", "V2", store.fingerprint)
    assert (summary.read, summary.stored, summary.rejected) == (8, 6, {"a name": 1, "zero-size": 1})
    assert summary.left_out == {"file .txt": 3}
    assert summary.counts == {"gallery": 2, "pool": 1, "train": 3}
    assert summary.identities == {"gallery": 1, "pool": 0, "train": 2}
    assert summary.cameras == 2  # that of the rejected image is not among them
    assert summary.heights == (20, 25.0, 48)
    assert summary.widths == (10, 12.5, 20)


def test_shards_on_disk_and_those_that_are_not_there(directory):
    first, second = (directory / "shards" / name for name in ("00000.arrow", "00001.arrow"))
    summary = summarise(ImageStore(directory))
    assert (summary.shards, summary.missing) == (2, ())
    assert summary.shard_bytes == len(first.read_bytes()) + len(second.read_bytes())
    first.unlink()
    summary = summarise(ImageStore(directory))
    assert (summary.shards, summary.missing) == (2, (str(first),))
    assert summary.shard_bytes == len(second.read_bytes())


def test_the_spread_of_one_length():
    assert Spread.of(np.array([5], dtype=np.int16)) == (5, 5.0, 5)


def test_rows_are_spread_evenly_from_the_first_to_the_last(directory):
    store = ImageStore(directory)
    assert sample_rows(store, 3).tolist() == [0, 2, 5]
    assert sample_rows(store, 1).tolist() == [0]
    assert sample_rows(store, 6).tolist() == sample_rows(store, 48).tolist() == [0, 1, 2, 3, 4, 5]


def test_captions_say_what_is_known(directory):
    store = ImageStore(directory)
    assert captions(store, np.array([0, 3, 4, 5])) == ["7 c3", "c3", "9", ""]


def test_verifying_tells_after_each_shard_how_many_are_compared(directory):
    told: list[int] = []
    ImageStore(directory).verify(told.append)
    assert told == [1, 2]


def test_a_sheet_leaves_out_what_cannot_be_decoded(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)).save(whole, "JPEG")
    data = {"a.jpg": whole.getvalue(), "b.jpg": whole.getvalue()[:-200], "c.jpg": whole.getvalue()}
    records = [Record(key, -1, -1, "pool", key) for key in data]
    write_shard(tmp_path, 0, records, lambda record: data[record.key], verify="header")
    finish_store(tmp_path, 1, "folder", "")
    rows, images = sample_images(ImageStore(tmp_path), 48)
    assert rows.tolist() == [0, 2] and [image.shape for image in images] == [(64, 32, 3)] * 2
