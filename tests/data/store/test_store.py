import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayreid.data.store import shards as shards_module
from rayreid.data.store.shards import digest_of_image
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError


def jpeg(seed: int, height: int = 20, width: int = 10) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path) -> Path:
    """Twelve good images of different sizes, as files."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number, 20 + number, 10 + number))
    return folder


def records_of(folder: Path) -> list[Record]:
    splits = ["train", "query", "gallery"]
    return [
        Record(path.name, number // 2 - 1, number % 3 - 1, splits[number % 3], str(path))
        for number, path in enumerate(sorted(folder.iterdir()))
    ]


def read(record: Record) -> bytes:
    return Path(record.path).read_bytes()


def ingest(directory, records, per_shard=5, order=None, ignored=(), **options) -> dict:
    pieces = [records[start : start + per_shard] for start in range(0, len(records), per_shard)]
    for shard in order or range(len(pieces)):
        write_shard(directory, shard, pieces[shard], read, **options)
    return finish_store(directory, len(pieces), "mine", "V1", ignored)


def test_bytes_and_labels_come_back(files, tmp_path):
    records = records_of(files)
    ingest(tmp_path / "store", records)
    store = ImageStore(tmp_path / "store")
    assert len(store) == 12
    for row, record in enumerate(records):
        assert bytes(store.encoded(row)) == read(record)
        assert (store.keys[row], store.splits[row]) == (record.key, record.split)
        assert (store.pids[row], store.camids[row]) == (record.pid, record.camid)
        assert store.image(row).shape == (store.heights[row], store.widths[row], 3) == (20 + row, 10 + row, 3)
    assert store.shards.tolist() == [0] * 5 + [1] * 5 + [2] * 2
    assert [store.pids.dtype, store.camids.dtype, store.heights.dtype] == [np.int32, np.int16, np.int16]
    assert store.rows_of("query").tolist() == [1, 4, 7, 10]
    assert store.rows_of("pool").tolist() == []
    store.verify()


def test_files_are_of_the_documented_format(files, tmp_path):
    ingest(tmp_path / "store", records_of(files))
    with pa.memory_map(str(tmp_path / "store/shards/00001.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table.schema.names == ["key", "image"]
        assert table.schema.field("image").type == pa.binary()
        assert table["image"][0].as_py() == (files / "05.jpg").read_bytes()
    schema = pq.read_schema(tmp_path / "store/index.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "key": "string",
        "pid": "int32",
        "camid": "int16",
        "split": "string",
        "height": "int16",
        "width": "int16",
        "shard": "int32",
        "row": "int32",
        "orientation": "int8",
        "digest": "fixed_size_binary[16]",
        "crc32": "uint32",
    }


def test_batches_are_bounded_in_rows_and_bytes(files, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "BATCH_ROWS", 4)
    monkeypatch.setattr(shards_module, "BATCH_BYTES", 3 * len((files / "11.jpg").read_bytes()))
    records = records_of(files)
    write_shard(tmp_path / "store", 0, records, read)
    finish_store(tmp_path / "store", 1, "mine", "")
    with pa.memory_map(str(tmp_path / "store/shards/00000.arrow")) as source:
        file = pa.ipc.open_file(source)
        rows = [file.get_batch(number).num_rows for number in range(file.num_record_batches)]
    assert sum(rows) == 12
    assert max(rows) <= 4
    assert len(rows) > 3  # the later, larger images come in batches of three
    store = ImageStore(tmp_path / "store")
    assert [bytes(store.encoded(row)) for row in range(12)] == [read(record) for record in records]


def test_a_shard_streams_its_images_without_copying_them(files, tmp_path):
    ingest(tmp_path / "store", records_of(files), per_shard=5)
    store = ImageStore(tmp_path / "store")
    batches = [batch for shard in range(3) for batch in store.batches(shard)]
    streamed = {k: v for batch in batches for k, v in zip(*(column.to_pylist() for column in batch), strict=True)}
    assert list(streamed) == store.keys.tolist()
    assert all(bytes(store.encoded(row)) == streamed[key] for row, key in enumerate(store.keys))
    first = np.frombuffer(store.encoded(0), np.uint8)
    assert batches[0]["image"].buffers()[2].address == first.ctypes.data


def test_encoded_is_not_a_copy(files, tmp_path):
    ingest(tmp_path / "store", records_of(files))
    store = ImageStore(tmp_path / "store")
    first, second = (np.frombuffer(store.encoded(row), dtype=np.uint8) for row in (0, 0))
    assert first.__array_interface__["data"][0] == second.__array_interface__["data"][0]
    assert store.encoded(0).readonly


def spoil(files: Path) -> dict[str, str]:
    """Add one file of every bad kind; returns the reason expected for each."""
    good = jpeg(99, 64, 32)
    (files / "20.jpg").write_bytes(good[: len(good) // 2])
    (files / "21.jpg").write_bytes(b"")
    (files / "22.jpg").write_text("I am no image.\n" * 50)
    Image.new("1", (40_000, 1)).save(files / "23.png")
    (files / "24.jpg").mkdir()  # reading it is an OSError, also for root
    Image.new("RGB", (8, 16), (1, 2, 3)).save(files / "25.png")
    reasons = ("truncated", "zero-size", "undecodable", "too many pixels", "unreadable: a folder")
    return dict(zip(("20.jpg", "21.jpg", "22.jpg", "23.png", "24.jpg"), reasons, strict=True))


def test_bad_images_are_rejected_counted_and_never_lost(files, tmp_path):
    expected = spoil(files)
    records = records_of(files)
    manifest = ingest(tmp_path / "store", records, ignored=[("odd.jpg", "a name")])
    rejected = pq.read_table(tmp_path / "store/rejected.parquet").to_pylist()
    assert {row["key"]: row["reason"] for row in rejected} == expected | {"odd.jpg": "a name"}
    assert manifest["rejected"] == dict.fromkeys([*expected.values(), "a name"], 1)
    assert manifest["read"] == len(records) + 1
    assert manifest["stored"] == 13
    store = ImageStore(tmp_path / "store")
    assert set(store.keys) == {record.key for record in records} - set(expected)
    assert store.image(12)[0, 0].tolist() == [1, 2, 3]


def test_header_check_does_not_decode(files, tmp_path):
    spoil(files)
    manifest = ingest(tmp_path / "store", records_of(files), verify="header")
    assert "truncated" not in manifest["rejected"]
    assert manifest["stored"] == 14
    store = ImageStore(tmp_path / "store")
    row = store.rows_of_keys(["20.jpg"])[0]
    assert (store.heights[row], store.widths[row]) == (64, 32)
    with pytest.raises(UserError, match=r"20\.jpg.*truncated"):
        store.image(row)


def test_an_image_is_shown_upright_and_stored_as_it_was(files, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), (9, 9, 9)).save(files / "00.jpg", exif=exif)
    ingest(tmp_path / "store", records_of(files))
    store = ImageStore(tmp_path / "store")
    assert store.orientations.tolist() == [6] + [1] * 11
    assert store.image(0).shape == (store.heights[0], store.widths[0], 3) == (30, 20, 3)
    assert bytes(store.encoded(0)) == (files / "00.jpg").read_bytes()


def test_an_older_store_without_orientations_decodes_as_before(files, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(files / "00.jpg", exif=exif)
    ingest(tmp_path / "store", records_of(files))
    index, manifest = tmp_path / "store/index.parquet", tmp_path / "store/manifest.json"
    pq.write_table(pq.read_table(index).drop_columns(["orientation", "digest", "crc32"]), index)
    older = {name: value for name, value in json.loads(manifest.read_text()).items() if name != "index"}
    manifest.write_text(json.dumps({**older, "format": 1}))
    store = ImageStore(tmp_path / "store")
    assert store.image(0).shape == (20, 30, 3)
    assert store.digests().to_pylist() == [digest_of_image(store.encoded(row)) for row in range(12)]


def test_digests_belong_to_the_rows_of_the_index(files, tmp_path):
    records = records_of(files)
    ingest(tmp_path / "store", [records[0], Record("00.jpg", 1, 1, "train", records[3].path), *records[:0:-1]])
    store = ImageStore(tmp_path / "store")
    expected = [digest_of_image(store.encoded(row)) for row in range(len(store))]
    assert store.digests().to_pylist() == expected


def test_of_equal_keys_the_first_is_kept(files, tmp_path):
    records = records_of(files)
    within = Record("00.jpg", 7, 7, "train", records[3].path)  # in the shard of the first 00.jpg
    across = Record("01.jpg", 7, 7, "train", records[4].path)  # in another shard than the first 01.jpg
    manifest = ingest(tmp_path / "store", [records[0], within, *records[1:], across])
    assert manifest["rejected"] == {"duplicate key": 2}
    assert manifest["read"] == 14 == manifest["stored"] + 2
    store = ImageStore(tmp_path / "store")
    for record in records[:2]:
        (row,) = store.rows_of_keys([record.key])
        assert bytes(store.encoded(row)) == read(record)
        assert store.pids[row] == record.pid


def snapshot(store: Path) -> dict[str, bytes]:
    return {name: (store / name).read_bytes() for name in ("manifest.json", "index.parquet", "rejected.parquet")}


def test_store_does_not_depend_on_order_or_interruption(files, tmp_path):
    spoil(files)
    records = records_of(files)
    ingest(tmp_path / "a", records)
    ingest(tmp_path / "b", records, order=[3, 0, 2, 1])
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")

    # As after a kill: no part of shard 1, a half-written file beside it, no manifest.
    (tmp_path / "b/shards/00001.parquet").unlink()
    (tmp_path / "b/shards/00001.arrow").write_bytes(b"half")
    (tmp_path / "b/shards/00001.arrow.0.tmp").write_bytes(b"half")
    (tmp_path / "b/manifest.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        ImageStore(tmp_path / "b")
    with pytest.raises(UserError, match="00001"):
        finish_store(tmp_path / "b", 4, "mine", "V1")

    reads: list[str] = []

    def counted(record: Record) -> bytes:
        reads.append(record.key)
        return read(record)

    for shard in range(4):
        write_shard(tmp_path / "b", shard, records[5 * shard : 5 * shard + 5], counted)
    finish_store(tmp_path / "b", 4, "mine", "V1")
    assert reads == [record.key for record in records[5:10]]
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    assert not list((tmp_path / "b/shards").glob("*.tmp"))
    ImageStore(tmp_path / "b").verify()


def test_an_error_while_writing_leaves_no_part(files, tmp_path):
    def broken(record: Record) -> bytes:
        if record.key == "03.jpg":
            raise RuntimeError("killed")
        return read(record)

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "store", 0, records_of(files), broken)
    assert list((tmp_path / "store/shards").iterdir()) == []


def test_a_part_of_other_records_is_not_taken_for_complete(files, tmp_path):
    records = records_of(files)
    write_shard(tmp_path / "store", 0, records[:3], read)
    write_shard(tmp_path / "store", 0, records[3:6], read)
    finish_store(tmp_path / "store", 1, "mine", "")
    assert list(ImageStore(tmp_path / "store").keys) == ["03.jpg", "04.jpg", "05.jpg"]


def test_fingerprint_is_of_content_not_of_shards(files, tmp_path):
    records = records_of(files)
    first = ingest(tmp_path / "a", records)["fingerprint"]
    assert ingest(tmp_path / "b", records[::-1], per_shard=7)["fingerprint"] == first
    relabelled = [Record("00.jpg", 5, 0, "train", records[0].path), *records[1:]]
    assert ingest(tmp_path / "c", relabelled)["fingerprint"] != first
    (files / "00.jpg").write_bytes(jpeg(50))
    assert ingest(tmp_path / "d", records)["fingerprint"] != first


def test_index_is_sorted_by_key(files, tmp_path):
    ingest(tmp_path / "store", records_of(files)[::-1])
    store = ImageStore(tmp_path / "store")
    assert list(store.keys) == sorted(store.keys)
    assert bytes(store.encoded(2)) == (files / "02.jpg").read_bytes()


def test_manifest_counts(files, tmp_path):
    manifest = ingest(tmp_path / "store", records_of(files))
    assert manifest == json.loads((tmp_path / "store/manifest.json").read_text())
    assert (manifest["dataset"], manifest["version"]) == ("mine", "V1")
    assert manifest["counts"] == {"gallery": 4, "query": 4, "train": 4}
    # pids are -1 -1 0 0 1 1 2 2 3 3 4 4, the splits in turn: train -1 0 2 3, query -1 1 2 4
    assert manifest["identities"] == {"gallery": 4, "query": 3, "train": 3}
    assert manifest["cameras"] == 2
    assert [shard["rows"] for shard in manifest["shards"]] == [5, 5, 2]


def test_rows_of_keys_keeps_the_order_and_names_what_is_missing(files, tmp_path):
    ingest(tmp_path / "store", records_of(files))
    store = ImageStore(tmp_path / "store")
    assert store.rows_of_keys(["07.jpg", "00.jpg", "07.jpg"]).tolist() == [7, 0, 7]
    assert store.rows_of_keys([]).tolist() == []
    assert store.rows_of_keys(store.keys[[3, 1]]).tolist() == [3, 1]
    for absent in ("00", "05.png", "zz.jpg"):
        with pytest.raises(UserError, match=absent):
            store.rows_of_keys(["03.jpg", absent])


def test_pickled_store_opens_in_another_process(files, tmp_path, monkeypatch):
    ingest(tmp_path / "store", records_of(files))
    monkeypatch.chdir(tmp_path)
    store = ImageStore("store")  # relative, and opened elsewhere
    expected = bytes(store.encoded(3)).hex()
    program = "import pickle, sys; print(bytes(pickle.load(sys.stdin.buffer).encoded(3)).hex())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(store),
        capture_output=True,
        check=True,
        cwd="/",
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    assert done.stdout.decode().strip() == expected


def test_what_is_no_store_is_the_users_to_mend(files, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        ImageStore(tmp_path / "absent")
    with pytest.raises(UserError, match="no image store"):
        ImageStore(files)
    directory = tmp_path / "store"
    ingest(directory, records_of(files))

    manifest = (directory / "manifest.json").read_text()
    (directory / "manifest.json").write_text(manifest.replace('"format": 2', '"format": 99'))
    with pytest.raises(UserError, match="format 99"):
        ImageStore(directory)
    (directory / "manifest.json").write_text(manifest[:100])
    with pytest.raises(UserError, match=r"manifest\.json"):
        ImageStore(directory)
    (directory / "manifest.json").write_text(manifest.replace('"stored": 12', '"stored": 13'))
    with pytest.raises(UserError, match="12 images"):
        ImageStore(directory)
    (directory / "manifest.json").write_text(manifest)

    (directory / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"index\.parquet"):
        ImageStore(directory)


def test_damaged_and_missing_shards_are_named(files, tmp_path):
    directory = tmp_path / "store"
    ingest(directory, records_of(files))
    whole = (directory / "shards/00001.arrow").read_bytes()
    position = whole.index((files / "06.jpg").read_bytes()) + 100
    (directory / "shards/00001.arrow").write_bytes(whole[:position] + b"?" + whole[position + 1 :])
    with pytest.raises(UserError, match=r"00001\.arrow"):
        ImageStore(directory).verify()
    (directory / "shards/00001.arrow").write_bytes(whole[:position])
    with pytest.raises(UserError, match=r"00001\.arrow"):
        ImageStore(directory).encoded(6)
    (directory / "shards/00001.arrow").unlink()
    store = ImageStore(directory)  # opening looks at no shard
    assert bytes(store.encoded(0)) == (files / "00.jpg").read_bytes()
    for access in (store.verify, lambda: store.encoded(6)):
        with pytest.raises(UserError, match=r"00001\.arrow.*missing"):
            access()


def test_a_store_without_images_is_refused(files, tmp_path):
    shutil.rmtree(files)
    files.mkdir()
    (files / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="1 zero-size"):
        ingest(tmp_path / "store", records_of(files))
    assert not (tmp_path / "store/manifest.json").exists()


def test_a_shard_may_hold_nothing(files, tmp_path):
    (files / "99.jpg").write_bytes(b"")
    manifest = ingest(tmp_path / "store", records_of(files), per_shard=12)
    assert [shard["rows"] for shard in manifest["shards"]] == [12, 0]
    ImageStore(tmp_path / "store").verify()
