"""Damage to a store's files: it is named, or it changes nothing that is read."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayreid.data.store.image_checksum import checksum_of_image
from rayreid.data.store.manifest import index_facts
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError
from small_store import small_store

IMAGES = 12


@pytest.fixture
def store(tmp_path, monkeypatch) -> ImageStore:
    monkeypatch.delenv("RAYREID_CACHE", raising=False)
    return small_store(tmp_path / "store")


def changed(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x41
    path.write_bytes(content)


def as_before(directory: Path) -> None:
    """Make it a store of an earlier version, which has no checksums of images and of the index."""
    index, manifest = directory / "index.parquet", directory / "manifest.json"
    pq.write_table(pq.read_table(index).drop_columns(["crc32"]), index)
    content = json.loads(manifest.read_text())
    del content["index"]
    manifest.write_text(json.dumps(content))


def test_a_changed_byte_of_a_shard_is_named_or_changes_no_image(store):
    expected = [bytes(store.encoded(row)) for row in range(IMAGES)]
    path = store.directory / "shards" / "00001.arrow"
    whole = path.read_bytes()
    end = range(len(whole) - 600, len(whole))  # the footer: where the batches are
    random = np.random.default_rng(0).integers(0, len(whole), 150).tolist()
    named = 0
    for position in [*range(0, 700, 9), *random, *end[::9]]:
        changed(path, position)
        opened = ImageStore(store.directory)
        for row in np.flatnonzero(opened.shards == 1):
            try:
                assert bytes(opened.encoded(row)) == expected[row], position
            except UserError as error:
                named += 1
                assert "00001.arrow" in str(error)
        path.write_bytes(whole)
    assert named > 100


def test_the_damaged_image_is_named_with_its_place_and_the_remedy(store, tmp_path):
    row = int(np.flatnonzero(store.shards == 1)[1])
    data = bytes(store.encoded(row))
    path = store.directory / "shards" / "00001.arrow"
    changed(path, path.read_bytes().index(data) + len(data) // 2)
    opened = ImageStore(store.directory)
    message = rf"00001\.arrow: image '{opened.keys[row]}' \(shard 1, row 1\) is not what was ingested; restore .*delete"
    for read in (opened.encoded, opened.image, lambda one: opened.decoded([one])):
        with pytest.raises(UserError, match=message):
            read(row)
    assert len(opened.images(np.flatnonzero(store.shards != 1))) == IMAGES - (store.shards == 1).sum()


def test_a_store_of_an_earlier_version_is_read_as_before(store):
    expected = [bytes(store.encoded(row)) for row in range(IMAGES)]
    as_before(store.directory)
    opened = ImageStore(store.directory)
    assert store.checked and not opened.checked
    assert [bytes(opened.encoded(row)) for row in range(IMAGES)] == expected
    opened.verify()


@pytest.mark.parametrize("row", [-1, IMAGES, -IMAGES, np.int64(-1)])
def test_a_row_out_of_range_is_refused(store, row):
    for read in (store.encoded, store.image, lambda one: store.decoded([one])):
        with pytest.raises(IndexError, match="no row"):
            read(row)


@pytest.mark.parametrize("column", ["pid", "split", "row", "shard", "key"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_changed_index_is_noticed(store, tmp_path, column, earlier):
    """In one of an earlier version, `verify` notices changed labels, and a read notices a place that does not exist."""
    splits = ("train", "query", "gallery")
    records = [Record(f"{number:02d}", number, 0, splits[number % 3], str(number)) for number in range(IMAGES)]
    directory = tmp_path / "labelled"
    write_shard(directory, 0, records, lambda record: bytes(store.encoded(int(record.path))))
    finish_store(directory, 1, "mine", "")
    if earlier:
        as_before(directory)
    path = directory / "index.parquet"
    index = pq.read_table(path)
    values = index[column].to_pylist()
    values = [-1] * IMAGES if column == "row" else [7] * IMAGES if column == "shard" else values[1:] + values[:1]
    place = index.column_names.index(column)
    pq.write_table(index.set_column(place, column, pa.array(values, index.schema.field(column).type)), path)
    if not earlier:
        with pytest.raises(UserError, match=r"index\.parquet: this index changed since the ingest; restore"):
            ImageStore(directory)
    elif column in ("row", "shard"):
        with pytest.raises(UserError, match=r"is not what was ingested|names places that no shard has"):
            ImageStore(directory).encoded(3)
    else:
        with pytest.raises(UserError, match=r"index\.parquet: the labels are not those that were ingested"):
            ImageStore(directory).verify()


@pytest.mark.parametrize("name", ["index.parquet", "manifest.json", "shards/00001.arrow"])
def test_a_cut_or_emptied_file_is_named(store, name):
    path = store.directory / name
    whole = path.read_bytes()
    for size in (0, 1, 9, len(whole) // 3, len(whole) - 2):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=path.name):
            ImageStore(store.directory).images(range(IMAGES))


@pytest.mark.parametrize(
    "wrong",
    [
        {"stored": "12"},
        {"shards": {}},
        {"shards": [{"file": "../../secret", "rows": 1, "checksum": "0"}]},
        {"counts": None},
        {"index": []},
        {"fingerprint": 7},
        {"origin": 3},
    ],
)
def test_a_manifest_of_another_shape_is_named(store, wrong):
    path = store.directory / "manifest.json"
    path.write_text(json.dumps({**store.manifest, **wrong}))
    with pytest.raises(UserError, match=rf"manifest\.json is no image store's manifest \('{next(iter(wrong))}'"):
        ImageStore(store.directory)


@pytest.mark.parametrize("content", ["", "[]", "null", "7", '{"format": true}', '{"format": []}', "[" * 100_000])
def test_what_is_no_manifest_is_named(store, content):
    (store.directory / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        ImageStore(store.directory)


def test_a_shard_without_its_list_of_rejected_images_or_with_a_damaged_part_is_written_again(store, tmp_path):
    records = [Record(f"{number}.jpg", 0, 0, "train", str(number)) for number in range(4)]
    images = [bytes(store.encoded(row)) for row in range(4)]
    read: list[str] = []

    def counted(record: Record) -> bytes:
        read.append(record.key)
        return images[int(record.path)]

    folder = tmp_path / "other"
    for damage in (
        lambda: None,
        lambda: (folder / "shards/00000.parquet").write_bytes(b"PAR1"),
        lambda: (folder / "shards/00000.rejected.parquet").unlink(),
        lambda: (folder / "shards/00000.arrow").unlink(),
        lambda: drop_checksums(folder / "shards/00000.parquet"),
    ):
        damage()
        read.clear()
        write_shard(folder, 0, records, counted)
        assert len(read) == 4
    write_shard(folder, 0, records, counted)
    assert len(read) == 4  # it is whole
    (folder / "shards/00000.rejected.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"00000\.rejected\.parquet is damaged \(.*\): run the ingest again"):
        finish_store(folder, 1, "mine", "")


def drop_checksums(part: Path) -> None:
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["crc32"]), part)


def test_the_checksum_is_that_of_zlib_in_pieces_of_any_size():
    data = np.random.default_rng(0).bytes(20_000)
    for size in (0, 1, 5119, 5120, 5121, 20_000):
        assert checksum_of_image(memoryview(data)[:size]) == index_facts(data[:size])["crc32"]
