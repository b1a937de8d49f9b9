"""What is left when the writer of a store is killed, or the disk is full, and how it goes on."""

import dataclasses
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayreid.data.datasets.folder import Folder
from rayreid.data.store.index import finish_store
from rayreid.data.store.listing import deal
from rayreid.data.store.shards import MissingImageError, write_shard
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError

WRITER = """
import sys, time
from pathlib import Path
from rayreid.data.store import listing
from rayreid.data.datasets.folder import Folder
from rayreid.data.store.shards import write_shard
listing.SHARD_IMAGES = listing.LEAST_IMAGES = 10
files, store = map(Path, sys.argv[1:])
folder = Folder(str(files))
def read(record):
    time.sleep(0.005)
    return folder.read(record)
for number, part in enumerate(listing.deal(folder.records())):
    write_shard(store, number, part.records(), read)
"""


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("rayreid.data.store.listing.SHARD_IMAGES", 10)
    monkeypatch.setattr("rayreid.data.store.listing.LEAST_IMAGES", 10)
    folder = tmp_path / "files"
    for number in range(100):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (16, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        path = folder / f"{number % 7}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return folder


def ingest(files: Path, store: Path) -> list[str]:
    """Write what is missing and join; returns the keys that were read."""
    folder, reads = Folder(str(files)), []

    def read(record):
        reads.append(record.key)
        return folder.read(record)

    shards = [write_shard(store, number, part.records(), read) for number, part in enumerate(deal(folder.records()))]
    finish_store(store, len(shards), "folder", "")
    return reads


def test_a_killed_ingest_goes_on_to_the_same_store(files, tmp_path):
    assert len(ingest(files, tmp_path / "whole")) == 100
    half = tmp_path / "half"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, files, half], env={**os.environ, "OMP_NUM_THREADS": "1"})
    finished = half / "shards" / "00003.parquet"
    until = time.monotonic() + 60
    while not finished.exists() and time.monotonic() < until:
        time.sleep(0.002)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    complete = len(list((half / "shards").glob("[0-9]*[0-9].parquet")))
    assert 4 <= complete < 10

    reads = ingest(files, half)
    assert len(reads) == 100 - 10 * complete  # finished shards are not read again
    whole, half_store = ImageStore(tmp_path / "whole"), ImageStore(half)
    assert half_store.fingerprint == whole.fingerprint
    assert half_store.keys.tolist() == whole.keys.tolist()
    assert all(half_store.encoded(row) == whole.encoded(row) for row in range(100))
    manifests = [json.loads((store / "manifest.json").read_text()) for store in (tmp_path / "whole", half)]
    assert manifests[0] == manifests[1]


def test_a_full_disk_is_one_clear_line_and_can_be_resumed(files, tmp_path):
    """A limit on the size of files stands for the full disk: the kernel refuses the write in the same way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(UserError) as refused:
            ingest(files, tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path / "store") in str(refused.value) and "again" in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="not finished"):
        ImageStore(tmp_path / "store")
    assert len(ingest(files, tmp_path / "store")) == 100
    assert len(ImageStore(tmp_path / "store")) == 100


def test_a_full_disk_while_joining(files, tmp_path):
    folder, limits = Folder(str(files)), resource.getrlimit(resource.RLIMIT_FSIZE)
    for number, part in enumerate(deal(folder.records())):
        write_shard(tmp_path / "store", number, part.records(), folder.read)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(UserError, match="index cannot be written"):
            finish_store(tmp_path / "store", 10, "folder", "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ingest(files, tmp_path / "store") == []
    assert len(ImageStore(tmp_path / "store")) == 100


def test_storage_that_does_not_answer_rejects_nothing(files, tmp_path):
    folder = Folder(str(files))

    def stale(record):
        raise OSError(errno.ESTALE, "Stale file handle")

    (part, *_) = deal(folder.records())
    with pytest.raises(UserError, match="storage does not answer"):
        write_shard(tmp_path / "store", 0, part.records(), stale)
    assert len(ingest(files, tmp_path / "store")) == 100
    assert len(ImageStore(tmp_path / "store")) == 100


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(), "missing"),
        (PermissionError(), "not permitted"),
        (IsADirectoryError(), "a folder"),
        (MissingImageError("the archive ends", "cut off"), "cut off"),
        (OSError(errno.ENAMETOOLONG, "too long"), "name too long"),
        (OSError(errno.ELOOP, "a loop"), "links in a circle"),
    ],
)
def test_an_image_that_alone_cannot_be_read_is_rejected(files, tmp_path, error, reason):
    folder = Folder(str(files))

    def read(record):
        if record.key.endswith("003.jpg"):
            raise error
        return folder.read(record)

    records = [record for part in deal(folder.records()) for record in part.records()]
    write_shard(tmp_path / "store", 0, records, read)
    manifest = finish_store(tmp_path / "store", 1, "folder", "", listed=100)
    assert (manifest["read"], manifest["stored"], manifest["rejected"]) == (100, 99, {f"unreadable: {reason}": 1})


def test_a_corrected_path_is_read_again(files, tmp_path):
    (good,) = [record for part in deal(Folder(str(files)).records()) for record in part.records()][:1]
    wrong = dataclasses.replace(good, path=str(files / "absent.jpg"))
    write_shard(tmp_path / "store", 0, [wrong], Folder(str(files)).read)
    write_shard(tmp_path / "store", 0, [good], Folder(str(files)).read)
    assert finish_store(tmp_path / "store", 1, "folder", "")["stored"] == 1


def test_an_image_that_got_lost_is_noticed(files, tmp_path):
    folder = Folder(str(files))
    (part, *_) = deal(folder.records())
    write_shard(tmp_path / "store", 0, part.records(), folder.read)
    with pytest.raises(RuntimeError, match="11 images were listed, the shards account for 10"):
        finish_store(tmp_path / "store", 1, "folder", "", [("a", "outside its root")], listed=11)


def test_an_output_that_is_no_folder_is_named(files, tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        ingest(files, tmp_path / "store")
