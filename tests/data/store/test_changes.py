"""What happens to a dataset after it was ingested, and what the comparison says of it."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayreid.data.datasets.combined import Combined
from rayreid.data.datasets.existing_store import ExistingStore
from rayreid.data.datasets.folder import Folder
from rayreid.data.datasets.lmdb_store import LmdbStore
from rayreid.data.datasets.table import Table
from rayreid.data.datasets.tar_shards import TarShards
from rayreid.data.store import changes
from rayreid.data.store.changes import changes_since_ingest
from rayreid.data.store.index import finish_store
from rayreid.data.store.listing import deal, write_part
from rayreid.data.store.witness import SourceFile, Witness, digest_of_files, write_witness
from rayreid.data.synthetic.synthetic import Synthetic
from rayreid.errors import UserError


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 10, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def pool(tmp_path) -> Path:
    (tmp_path / "pool").mkdir()
    for number in range(12):
        (tmp_path / f"pool/{number:02d}.jpg").write_bytes(jpeg(number))
    return tmp_path / "pool"


@pytest.fixture
def ingest(tmp_path):
    """Ingests a dataset; returns a function that compares the store with the dataset, opened anew."""

    def ingest(build, place="here"):
        directory = tmp_path / "store"
        directory.mkdir()
        dataset = build()
        write_witness(directory, dataset.sources(), place)
        parts = [
            write_part(directory, n, part, dataset.read, "decode") for n, part in enumerate(deal(dataset.records()))
        ]
        finish_store(directory, len(parts), dataset.name, dataset.version, dataset.ignored)
        return lambda verify="quick", now=build, place=place: changes_since_ingest(directory, now(), place, verify)

    return ingest


def keep_times(path: Path, data: bytes) -> None:
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_did_not_change_is_not_read(pool, ingest, monkeypatch):
    compare = ingest(lambda: Folder(pool))
    monkeypatch.setattr(Folder, "records", lambda self: pytest.fail("the folder is listed"))
    assert compare() == ""


def test_a_touched_file_is_read_and_the_witness_written_anew(pool, ingest, tmp_path, monkeypatch):
    compare = ingest(lambda: Folder(pool))
    os.utime(pool / "03.jpg", ns=(0, 0))
    read = []
    whole = Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, record: read.append(record.key) or whole(self, record))
    assert compare() == "" and read == ["03.jpg"]
    assert Witness(tmp_path / "store").digest == digest_of_files(Folder(pool).sources())
    assert compare() == "" and read == ["03.jpg"]


def test_a_file_that_changes_during_the_comparison_is_found_by_the_next(pool, ingest, monkeypatch):
    compare = ingest(lambda: Folder(pool))
    os.utime(pool / "03.jpg", ns=(0, 0))
    whole = Folder.read

    def read(self, record):
        (pool / "05.jpg").write_bytes(jpeg(99))  # which is not read: it had not been touched
        return whole(self, record)

    monkeypatch.setattr(Folder, "read", read)
    assert compare() == ""
    assert compare() == "at least 1 changed (first 05.jpg)"


def test_a_copy_elsewhere_is_the_same_and_other_data_there_are_not(pool, ingest, tmp_path):
    compare = ingest(lambda: Folder(pool), "/site/a")
    shutil.copytree(pool, tmp_path / "copy", copy_function=shutil.copyfile)
    assert compare(now=lambda: Folder(tmp_path / "copy"), place="/site/b") == ""
    assert Witness(tmp_path / "store").place == "/site/b"
    (tmp_path / "copy/00.jpg").rename(tmp_path / "copy/new.jpg")
    told = compare(now=lambda: Folder(tmp_path / "copy"), place="/site/c")
    assert told == (
        "1 added (first new.jpg), 1 removed (first 00.jpg); it was read from /site/b, the dataset is now /site/c"
    )


def test_other_bytes_are_found_by_size_or_time_and_else_only_by_a_full_comparison(pool, ingest):
    compare = ingest(lambda: Folder(pool))
    assert compare("full") == ""
    good = (pool / "05.jpg").read_bytes()
    keep_times(pool / "05.jpg", good[:-4] + bytes([good[-4] ^ 1]) + good[-3:])
    assert compare() == ""
    assert compare("full") == "at least 1 changed (first 05.jpg)"
    os.utime(pool / "05.jpg", ns=(0, 0))
    assert compare() == "at least 1 changed (first 05.jpg)"


def test_a_broken_image_that_was_mended_is_found(pool, ingest):
    (pool / "bad.jpg").write_bytes(b"<html>404</html>")
    (pool / "away.jpg").symlink_to(pool.parent / "later.jpg")
    compare = ingest(lambda: Folder(pool))
    assert compare() == ""
    (pool / "bad.jpg").write_bytes(b"<html>404: still no image</html>")
    assert compare() == ""  # another page, which is rejected as the first was
    (pool / "bad.jpg").write_bytes(jpeg(77))
    assert compare() == "at least 1 changed (first bad.jpg)"
    (pool / "bad.jpg").write_bytes(b"<html>404</html>")
    (pool.parent / "later.jpg").write_bytes(jpeg(78))
    assert "away.jpg" in compare()


def test_a_file_that_becomes_readable_is_found_though_it_did_not_change(pool, ingest, monkeypatch):
    whole = Folder.read

    def read(self, record):
        if record.key == "04.jpg":
            raise PermissionError(13, "Permission denied")
        return whole(self, record)

    monkeypatch.setattr(Folder, "read", read)
    compare = ingest(lambda: Folder(pool))
    assert compare() == ""
    monkeypatch.setattr(Folder, "read", whole)
    assert compare() == "at least 1 readable now (first 04.jpg)"


def test_reading_what_could_not_be_read_stops_at_the_first_that_can(pool, ingest, monkeypatch):
    for number in range(100, 150):
        (pool / f"{number}.jpg").write_bytes(b"")
    whole, read, refused = Folder.read, [], set(map(str, range(100, 150)))

    def partly(self, record):
        if record.key.removesuffix(".jpg") in refused:
            raise PermissionError(13, "Permission denied")
        read.append(record.key)
        return whole(self, record)

    monkeypatch.setattr(Folder, "read", partly)
    compare = ingest(lambda: Folder(pool))
    assert compare() == ""
    read.clear()
    refused.clear()
    assert compare() == "at least 8 readable now (first 100.jpg)" and len(read) == 8


def test_a_key_with_a_line_break_is_told_in_one_line(pool, ingest):
    (pool / "a\nb.jpg").write_bytes(jpeg(50))
    compare = ingest(lambda: Folder(pool))
    (pool / "a\nb.jpg").unlink()
    assert compare() == r"1 removed (first a\nb.jpg)"


def test_labels_of_a_table_are_compared(pool, ingest):
    table = pool / "labels.csv"
    rows = [f"{number:02d}.jpg,{number // 4},{number % 2},train\n" for number in range(12)]
    table.write_text("path,pid,camid,split\n" + "".join(rows))
    compare = ingest(lambda: Table(table))
    keep_times(table, table.read_bytes().replace(b"03.jpg,0,", b"03.jpg,9,"))
    assert compare() == "1 given another identity, camera or split (first 03.jpg)"
    table.write_text("key,path,pid,camid,split\n" + "".join(f",{row}" for row in rows))
    assert compare() == ""  # another table with the same rows
    os.utime(pool / "03.jpg", ns=(0, 0))
    (pool / "04.jpg").write_bytes(jpeg(99))
    assert compare() == "at least 1 changed (first 04.jpg)"


def test_databases_and_archives_are_compared_by_their_files(pool, ingest, tmp_path):
    import lmdb

    images = {path.name: path.read_bytes() for path in sorted(pool.iterdir())}
    with lmdb.open(str(tmp_path / "lmdb"), map_size=2**24) as database, database.begin(write=True) as transaction:
        for key, data in images.items():
            transaction.put(key.encode(), data)
    compare = ingest(lambda: LmdbStore(tmp_path / "lmdb"))
    os.utime(tmp_path / "lmdb/lock.mdb", ns=(0, 0))  # it changes whenever somebody reads
    assert [file.name for file in LmdbStore(tmp_path / "lmdb").sources()] == ["data.mdb"]
    assert compare() == ""
    (tmp_path / "lmdb/keys.txt").write_text("".join(f"{key}\n" for key in list(images)[1:]))
    assert compare() == "1 removed (first 00.jpg)"


def test_only_members_of_a_changed_archive_are_read(pool, ingest, tmp_path, monkeypatch):
    folder = tmp_path / "tars"
    for name, first in (("one", 0), ("two", 6)):
        (tmp_path / name).mkdir()
        for number in range(first, first + 6):
            shutil.copy(pool / f"{number:02d}.jpg", tmp_path / name)
        folder.mkdir(exist_ok=True)
        shutil.make_archive(str(folder / name), "tar", tmp_path / name)
    compare = ingest(lambda: TarShards(folder))
    read = []
    whole = TarShards.read
    monkeypatch.setattr(TarShards, "read", lambda self, record: read.append(record.key) or whole(self, record))
    os.utime(folder / "two.tar", ns=(0, 0))
    assert compare() == "" and sorted(read) == [f"two/{number:02d}.jpg" for number in range(6, 12)]


def test_parts_of_a_combined_dataset_are_compared(pool, ingest, tmp_path):
    shutil.copytree(pool, tmp_path / "second")
    parts = [{"dataset": "folder", "root": str(pool)}, {"dataset": "folder", "root": str(tmp_path / "second")}]
    compare = ingest(lambda: Combined(parts=parts))
    assert compare() == ""
    (tmp_path / "second/07.jpg").write_bytes(jpeg(99))
    assert compare() == "at least 1 changed (first 1-folder/07.jpg)"


def test_drawn_images_have_no_files_and_do_not_change(ingest):
    compare = ingest(lambda: Synthetic(part="pool", images=8, size=[32, 16]))
    assert compare() == compare("full") == ""


def test_an_adopted_store_is_compared_by_its_fingerprint(pool, ingest, tmp_path):
    ingest(lambda: Folder(pool))
    ExistingStore(str(tmp_path / "store")).adopt(tmp_path / "adopted")

    def compare(root: Path) -> str:
        return changes_since_ingest(tmp_path / "adopted", ExistingStore(str(root)), str(root), "full")

    assert compare(tmp_path / "store") == ""
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    manifest = tmp_path / "other/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "fingerprint": "0"}))
    assert compare(tmp_path / "other") == f"{tmp_path / 'other'} is another store"


def test_a_store_without_a_witness_is_compared_as_a_whole(pool, ingest, tmp_path):
    compare = ingest(lambda: Folder(pool))
    (tmp_path / "store/witness.parquet").unlink()
    assert compare() == "" and (tmp_path / "store/witness.parquet").exists()


@pytest.mark.parametrize("kept", [0, 100, -200])
def test_a_damaged_witness_is_none(pool, ingest, tmp_path, kept):
    compare = ingest(lambda: Folder(pool))
    path = tmp_path / "store/witness.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    assert Witness(tmp_path / "store").digest == ""
    assert compare() == "" and Witness(tmp_path / "store").digest == digest_of_files(Folder(pool).sources())


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_list_of_rejected_images_that_cannot_be_read_is_named(pool, ingest, tmp_path, damage):
    compare = ingest(lambda: Folder(pool))
    damage(tmp_path / "store/rejected.parquet")
    with pytest.raises(UserError, match=r"store/rejected\.parquet cannot be read .*ingest again"):
        compare()


def test_a_witness_of_any_length_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("rayreid.data.store.witness._CHUNK", 3)
    files = [SourceFile(f"{number}", number, 10**18 + number, "" if number else "sum") for number in range(8)]
    write_witness(tmp_path, iter(files), "/somewhere")
    witness = Witness(tmp_path)
    assert list(witness.files()) == files
    assert (witness.digest, witness.place) == (digest_of_files(files), "/somewhere")
    assert witness.digest != digest_of_files(files[::-1])


def test_the_first_image_of_equal_keys_is_compared_though_others_come_before_it(pool, ingest):
    table = pool / "labels.csv"
    table.write_text("path,key,pid\n00.jpg,a.jpg,1\n01.jpg,a.jpg,2\n02.jpg,a.jpg,3\n")
    (pool / "00.jpg").write_bytes(b"<html>404</html>")
    compare = ingest(lambda: Table(table))
    assert compare("full") == ""
    os.utime(pool / "02.jpg", ns=(0, 0))
    os.utime(pool / "00.jpg", ns=(0, 0))
    assert compare() == ""
    (pool / "02.jpg").write_bytes(jpeg(99))
    assert compare() == ""
    shutil.copy(pool / "03.jpg", pool / "00.jpg")  # which an ingest would store now
    assert compare() == "at least 1 changed (first a.jpg)"


def test_the_first_of_equal_keys_is_the_one_that_is_compared(pool, ingest, monkeypatch):
    table = pool / "labels.csv"
    table.write_text("path,key\n00.jpg,a.jpg\n01.jpg,a.jpg\n02.jpg,b.jpg\n")
    compare = ingest(lambda: Table(table))
    monkeypatch.setattr(changes, "_CHUNK", 1)
    assert compare("full") == ""
    (pool / "00.jpg").write_bytes(jpeg(99))
    assert compare() == "at least 1 changed (first a.jpg)"
