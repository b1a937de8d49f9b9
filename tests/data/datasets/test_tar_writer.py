"""Archives that are written, and read back by the platform's own reader."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from rayreid.data.datasets.tar_shards import TarShards
from rayreid.data.datasets.tar_writer import write_tars


def image(number: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


SAMPLES = [
    (image(number, "PNG" if number % 3 == 2 else "JPEG"), {"key": f"a b/../{number}", "rank": 12 - number})
    for number in range(12)
]


@pytest.mark.parametrize("limit", [1, 20_480, 2**28])
def test_our_own_reader_reads_what_is_written(tmp_path, limit):
    tars = write_tars(tmp_path, "subset", iter(SAMPLES), limit)
    assert len(tars) == {1: 12, 20_480: 2, 2**28: 1}[limit]
    assert [tar.name for tar in tars] == [f"subset-{number:06d}.tar" for number in range(len(tars))]
    assert limit == 1 or all(tar.stat().st_size <= limit for tar in tars)
    dataset = TarShards(tmp_path)
    records = list(dataset.records())
    assert [dataset.read(record) for record in records] == [data for data, _ in SAMPLES]
    assert dataset.ignored == [] and dataset.left_out == {"file .json": (12, dataset.left_out["file .json"][1])}
    assert {record.key.rpartition(".")[2] for record in records} == {"jpg", "png"}


def test_each_image_lies_beside_its_description(tmp_path):
    [path] = write_tars(tmp_path, "subset", SAMPLES)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        described = [json.load(tar.extractfile(member)) for member in members if member.name.endswith(".json")]
    assert names[:4] == ["000000000.jpg", "000000000.json", "000000001.jpg", "000000001.json"]
    assert names == sorted(names, key=lambda name: name.partition(".")[0]) and described == [one for _, one in SAMPLES]


def test_the_same_images_give_the_same_bytes(tmp_path):
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written.append([path.read_bytes() for path in write_tars(tmp_path / name, "subset", SAMPLES, 20_480)])
    assert written[0] == written[1]


def test_an_image_that_its_bytes_do_not_tell_keeps_the_suffix_of_its_key(tmp_path):
    [path] = write_tars(tmp_path, "subset", [(b"BM\1\1\1\1\1\1\1\1", {"key": "folder/odd.BMP"})])
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["000000000.bmp", "000000000.json"]


def test_an_archive_that_is_not_finished_has_no_name(tmp_path):
    def broken():
        yield SAMPLES[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_tars(tmp_path, "subset", broken())
    assert list(tmp_path.iterdir()) == []
