"""The cache of shards on a disk without room: what is removed, and what happens if nothing can be."""

import errno
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from rayreid.data.store import shard_cache, shard_files
from rayreid.data.store.shard_copy import UnfinishedCopy, hold
from rayreid.data.store.shard_files import ShardFile
from rayreid.data.store.shards import digest_of_image
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError
from shard_copies import checksums, copies, first_rows, images, sizes

KILLED = """
import sys
from rayreid.data.store.shard_files import ShardFile
from rayreid.data.store.store import ImageStore

class Stalled:
    def __init__(self, stream):
        self.stream = stream
    def read(self, size):
        data = self.stream.read(int(sys.argv[3]))
        if not data:
            print("written", flush=True)
            sys.stdin.read()
        return data
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.stream.close()

opened = ShardFile.open
ShardFile.open = lambda self: Stalled(opened(self))
ImageStore(sys.argv[1]).encoded(int(sys.argv[2]))
"""


def test_on_a_full_disk_the_copy_that_was_opened_longest_ago_is_removed(store, cache, disk):
    disk(sizes(store)[0] + sizes(store)[1] + sizes(store)[2] - 1)
    one, two, three = first_rows(store)
    ImageStore(store.directory).encoded(one)
    time.sleep(0.02)
    ImageStore(store.directory).encoded(two)
    time.sleep(0.02)
    ImageStore(store.directory).encoded(one)  # opened again, so that of the second shard is the oldest
    time.sleep(0.02)
    ImageStore(store.directory).encoded(three)
    assert copies(cache) == {checksums(store)[0], checksums(store)[2]}


def test_what_a_process_reads_is_not_removed_and_another_shard_comes_from_its_origin(store, cache, disk, caplog):
    disk(sizes(store)[2] + 1)
    one, two, three = first_rows(store)
    reading = ImageStore(store.directory)
    kept = bytes(reading.encoded(three))
    with caplog.at_level(logging.WARNING, "rayreid"):
        other = ImageStore(store.directory)
        assert bytes(other.encoded(one)) == bytes(ImageStore(store.directory).encoded(one))
        other.encoded(two)
    assert copies(cache) == {checksums(store)[2]} and bytes(reading.encoded(three)) == kept
    (said,) = {record.message for record in caplog.records}  # one line, though several shards had no room
    assert said.startswith(f"RAYREID_CACHE={cache}: no room for a shard of 0 MiB") and said.endswith("were written")
    assert len(caplog.records) == 1


def test_a_disk_that_fills_up_while_a_copy_is_written_loses_an_old_copy(store, cache, monkeypatch):
    one, two, _ = first_rows(store)
    ImageStore(store.directory).encoded(one)
    tried = []

    def full_at_first(descriptor: int) -> None:
        tried.append(descriptor)
        if len(tried) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_at_first)
    ImageStore(store.directory).encoded(two)
    assert copies(cache) == {checksums(store)[1]} and len(tried) == 2
    assert not list(cache.glob("*.tmp"))


def test_a_write_that_finds_the_disk_full_removes_old_copies_and_leaves_the_cache_out(
    store, cache, monkeypatch, caplog
):
    monkeypatch.setattr(shard_cache, "_CHUNK", 1000)  # so that closing the file tries to write the rest again
    one, two, _ = first_rows(store)
    ImageStore(store.directory).encoded(one)
    (cache / f"{checksums(store)[1]}.tmp").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING, "rayreid"):
        assert len(ImageStore(store.directory).images([two])) == 1
    assert not copies(cache) and not list(cache.glob("*.tmp"))
    (said,) = [record.message for record in caplog.records]
    assert said == f"RAYREID_CACHE={cache}: No space left on device; shards are read from where they were written"


def left_by_a_killed_process(store: ImageStore, row: int) -> None:
    """Begin to copy the shard of an image in another process, and kill that process before the copy has its name."""
    command = [sys.executable, "-c", KILLED, str(store.directory), str(row), "1000"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_what_a_killed_process_left_takes_no_room(store, cache, disk):
    one, _, three = first_rows(store)
    left_by_a_killed_process(store, three)
    assert [path.stat().st_size for path in cache.iterdir()] == [sizes(store)[2]]
    disk(sizes(store)[2])
    ImageStore(store.directory).encoded(three)  # the same shard: written over
    assert {path.name for path in cache.iterdir()} == {f"{checksums(store)[2]}.arrow"}
    (cache / f"{checksums(store)[2]}.arrow").rename(cache / f"{checksums(store)[2]}.tmp")
    ImageStore(store.directory).encoded(one)  # another one: removed, and no lock file is left
    assert {path.name for path in cache.iterdir()} == {f"{checksums(store)[0]}.arrow"}
    (cache / f"{checksums(store)[1]}.tmp").write_bytes(bytes(sizes(store)[2] - sizes(store)[0]))
    disk(sizes(store)[0] + sizes(store)[2])
    ImageStore(store.directory).encoded(three)  # a finished copy is worth more
    assert copies(cache) == {checksums(store)[0], checksums(store)[2]} and not list(cache.glob("*.tmp"))


def test_what_another_process_is_writing_is_not_removed(store, cache, disk, caplog):
    disk(sizes(store)[1])
    cache.mkdir()
    with UnfinishedCopy(cache / f"{checksums(store)[0]}.tmp") as unfinished:
        unfinished.write(b"some")
        ImageStore(store.directory).encoded(first_rows(store)[1])
        assert unfinished.is_current() and not copies(cache)
    assert "no room" in caplog.text and not list(cache.iterdir())


def test_files_of_others_are_left_alone(store, cache, disk):
    cache.mkdir()
    name = checksums(store)[0]
    others = {"notes.arrow", "00000.arrow", f"{name}0.arrow", f"{name[1:]}.arrow", f"{name.upper()}.arrow.tmp"}
    others |= {"notes.tmp", f"{name}.lock", f"{name}.arrow.bak", f"x{name}.arrow", f".{name}.tmp"}
    for other in others:
        (cache / other).write_bytes(b"mine")
    disk(4 * len(others) + sizes(store)[2])
    for row in first_rows(store):
        ImageStore(store.directory).encoded(row)
    assert {path.name for path in cache.iterdir()} == others | {f"{checksums(store)[2]}.arrow"}
    assert {(cache / other).read_bytes() for other in others} == {b"mine"}


@pytest.fixture
def shards_of_some_megabytes(tmp_path) -> ImageStore:
    directory = tmp_path / "large"

    def drawn(record: Record) -> bytes:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(record.pid).integers(0, 256, (600, 600, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
        return buffer.getvalue()

    for shard in range(3):
        write_shard(directory, shard, [Record(f"{shard}-{n}.png", n, -1, "pool", "") for n in range(shard + 1)], drawn)
    finish_store(directory, 3, "mine", "V1")
    return ImageStore(directory)


def test_a_full_disk_is_told_of_once_whatever_the_sizes_are(shards_of_some_megabytes, cache, disk, caplog):
    store = shards_of_some_megabytes
    for number, row in enumerate(first_rows(store)):
        disk(-(2**21) * number)  # other programs fill it up
        store.encoded(row)
    (said,) = [record.message for record in caplog.records]
    assert f"RAYREID_CACHE={cache}: no room for a shard of 1 MiB" in said


def refuse_to_create(monkeypatch, code: int, times: int) -> None:
    """Let the next files not be created because of an error, as often as `times` says."""
    create, left = os.open, [code] * times

    def refuse(path, flags, *arguments, **options):
        if flags & os.O_CREAT and left:
            raise OSError(left.pop(), os.strerror(code), str(path))
        return create(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_on_which_no_file_can_be_created_loses_an_old_copy(store, cache, monkeypatch, code):
    one, two, _ = first_rows(store)
    ImageStore(store.directory).encoded(one)
    refuse_to_create(monkeypatch, code, times=1)
    ImageStore(store.directory).encoded(two)
    assert copies(cache) == {checksums(store)[1]}


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_in_which_no_file_can_be_created_is_told_of_once(store, cache, monkeypatch, caplog, code):
    ImageStore(store.directory).encoded(first_rows(store)[0])
    refuse_to_create(monkeypatch, code, times=9)
    assert len(ImageStore(store.directory).images(first_rows(store))) == 3
    assert copies(cache) == {checksums(store)[0]}
    (said,) = [record.message for record in caplog.records]
    assert said == f"RAYREID_CACHE={cache}: {os.strerror(code)}; shards are read from where they were written"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EROFS, "set RAYREID_CACHE to a folder on a disk of this node that can be written"),
        (errno.ENOSPC, "make room there, or set RAYREID_CACHE to a folder on another disk"),
    ],
)
def test_without_an_original_at_hand_the_remedy_fits_the_fault(store, cache, far_away, monkeypatch, code, remedy):
    refuse_to_create(monkeypatch, code, times=9)
    with pytest.raises(UserError) as refused:
        ImageStore(store.directory).encoded(0)
    assert str(refused.value) == f"{cache}: {os.strerror(code)}; {remedy}"


def test_a_store_in_an_object_store_is_read_in_order_from_a_disk_that_holds_one_shard(
    store, cache, disk, far_away, caplog
):
    disk(sizes(store)[2])
    reading = ImageStore(store.directory)
    for _ in range(2):
        assert [digest_of_image(image) for image in images(reading)] == reading.digests().to_pylist()
    assert len(copies(cache)) == 1
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(
        f"{cache}: this disk does not hold all shards of {store.directory}, so they are copied again"
    )


def test_other_stores_of_the_process_make_room_too(store, cache, disk, far_away):
    disk(sizes(store)[2])
    one, _, three = first_rows(store)
    first, second = ImageStore(store.directory), ImageStore(store.directory)
    first.encoded(one)
    second.encoded(three)
    assert copies(cache) == {checksums(store)[2]}


def test_what_is_read_where_it_was_written_is_not_dropped(store, cache, disk, monkeypatch):
    disk(sizes(store)[2])
    near, row = ImageStore(store.directory), first_rows(store)[0]
    with monkeypatch.context() as without:
        without.delenv("RAYREID_CACHE")
        near.encoded(row)
    monkeypatch.setattr(ShardFile, "path", None)
    images(ImageStore(store.directory))
    assert list(near.files.mapped) == [0]


@pytest.fixture
def patience(monkeypatch) -> Callable[[float], None]:
    def limit(seconds: float) -> None:
        monkeypatch.setattr(shard_files, "_PATIENCE_SECONDS", seconds)
        monkeypatch.setattr(shard_files, "_POLL_SECONDS", 0.02)

    return limit


def test_an_image_in_use_keeps_its_copy_though_there_is_no_room(store, cache, disk, far_away, patience):
    disk(sizes(store)[2])
    patience(0.1)
    one, two, _ = first_rows(store)
    reading = ImageStore(store.directory)
    image = reading.encoded(one)
    expected = bytes(image)
    with pytest.raises(UserError, match=r"no room .* make room there"):
        reading.encoded(two)
    assert copies(cache) == {checksums(store)[0]} and bytes(image) == expected
    del image
    reading.encoded(two)
    assert copies(cache) == {checksums(store)[1]}


def test_a_copy_that_another_process_holds_is_waited_for(store, cache, disk, far_away, patience):
    disk(sizes(store)[2])
    patience(60)
    one, two, _ = first_rows(store)
    ImageStore(store.directory).encoded(one)
    held = hold(cache / f"{checksums(store)[0]}.arrow")
    threading.Timer(0.3, held.lock.close).start()
    ImageStore(store.directory).encoded(two)
    assert held.lock.closed and copies(cache) == {checksums(store)[1]}


@pytest.mark.slow
def test_a_disk_that_is_really_full(store, tmp_path, monkeypatch):
    """A disk of its own in memory, which needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = sum(sizes(store)[1:])
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        monkeypatch.setenv("RAYREID_CACHE", str(folder))
        monkeypatch.setattr(shard_cache, "KEEP_FREE", 0.0)
        rows = list(range(len(store)))
        expected = [bytes(image) for image in store.images(rows)]
        assert [bytes(ImageStore(store.directory).image(row)) for row in rows] == expected
        assert 0 < len(copies(folder)) < 3
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # copies may still be held
