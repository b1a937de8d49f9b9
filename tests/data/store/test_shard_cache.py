import contextlib
import errno
import fcntl
import gc
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayreid.data.store import shard_cache
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from small_store import small_store

READER = """
import sys, time
from pathlib import Path
from rayreid.data.store.shard_files import ShardFile
from rayreid.data.store.store import ImageStore

opened = ShardFile.open
def counted(self):
    with Path(sys.argv[2]).open("a") as log:
        log.write(f"{self}\\n")
    time.sleep(0.2)
    return opened(self)
ShardFile.open = counted

store = ImageStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(sum(int(store.image(row).sum()) for row in range(len(store))))
"""


@pytest.fixture
def store(tmp_path) -> ImageStore:
    return small_store(tmp_path / "store")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RAYREID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_cache, "_warned", set())
    return tmp_path / "cache"


def copies(cache: Path) -> set[str]:
    return {path.stem for path in cache.glob("*.arrow")}


def checksums(store: ImageStore) -> list[str]:
    return [shard["checksum"] for shard in store.manifest["shards"]]


def first_rows(store: ImageStore) -> list[int]:
    """The first row of each shard."""
    return [store.rows_of_keys([f"{shard}-0.png"])[0] for shard in range(len(store.files))]


def test_a_shard_is_copied_when_its_first_image_is_needed(store, tmp_path, monkeypatch):
    monkeypatch.delenv("RAYREID_CACHE", raising=False)
    expected = [bytes(store.encoded(row)) for row in range(len(store))]
    cache = tmp_path / "cache"
    monkeypatch.setenv("RAYREID_CACHE", str(cache))
    again = ImageStore(store.directory)
    assert not cache.exists()
    again.encoded(first_rows(store)[1])
    assert copies(cache) == {checksums(store)[1]}
    assert [bytes(again.encoded(row)) for row in range(len(store))] == expected
    assert copies(cache) == set(checksums(store))
    shutil.rmtree(store.directory / "shards")  # the originals are not needed any more
    third = ImageStore(store.directory)
    assert [bytes(third.encoded(row)) for row in range(len(store))] == expected


def test_without_the_variable_nothing_is_copied(store, tmp_path, monkeypatch):
    monkeypatch.delenv("RAYREID_CACHE", raising=False)
    ImageStore(store.directory).image(0)
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_each_node_copies_every_shard_once_though_its_workers_race(store, tmp_path):
    log = tmp_path / "opened.txt"
    readers = []
    for node in ("one", "one", "one", "two", "two"):
        environment = {**os.environ, "RAYREID_CACHE": str(tmp_path / node)}
        command = [sys.executable, "-c", READER, str(store.directory), str(log)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        readers.append(subprocess.Popen(command, env=environment, **pipes))
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
    sums = {reader.communicate(timeout=60)[0] for reader in readers}
    assert sums == {f"{sum(int(store.image(row).sum()) for row in range(len(store)))}\n"}
    opened = log.read_text().split()
    assert sorted(opened) == sorted(2 * [str(shard) for shard in store.files])
    assert copies(tmp_path / "one") == copies(tmp_path / "two") == set(checksums(store))


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def disk(cache, monkeypatch):
    """A disk on which the copies have a given number of bytes beyond what stays free."""

    def limit(room: int) -> None:
        def usage(folder: Path) -> Usage:
            used = sum(path.stat().st_size for path in Path(folder).glob("*.arrow"))
            total = 10**9
            return Usage(total, used, int(shard_cache.KEEP_FREE * total) + room - used)

        monkeypatch.setattr(shutil, "disk_usage", usage)

    return limit


def sizes(store: ImageStore) -> list[int]:
    return [shard.size() for shard in store.files]


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


@pytest.mark.parametrize(("module", "name"), [(fcntl, "flock"), (shutil, "disk_usage")])
def test_a_cache_on_a_disk_without_locks_or_sizes_is_left_out(store, cache, monkeypatch, caplog, module, name):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(module, name, refuse)
    with caplog.at_level(logging.WARNING, "rayreid"):
        assert len(ImageStore(store.directory).images(first_rows(store))) == 3
    (said,) = [record.message for record in caplog.records]
    assert said == f"RAYREID_CACHE={cache}: No locks available; shards are read from where they were written"


@pytest.mark.parametrize("broken", [errno.EROFS, errno.EIO])
def test_a_cache_that_cannot_be_written_is_left_out(store, cache, monkeypatch, caplog, broken):
    def refuse(descriptor: int) -> None:
        raise OSError(broken, os.strerror(broken))

    monkeypatch.setattr(os, "fsync", refuse)
    with caplog.at_level(logging.WARNING, "rayreid"):
        images = ImageStore(store.directory).images(first_rows(store))
    assert len(images) == 3 and not copies(cache) and not list(cache.glob("*.tmp"))
    assert [record.message for record in caplog.records] == [
        f"RAYREID_CACHE={cache}: {os.strerror(broken)}; shards are read from where they were written"
    ]


def test_an_open_shard_takes_one_descriptor_with_a_cache_too(store, cache):
    reading = ImageStore(store.directory)
    reading.images(first_rows(store))
    opened = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
    assert len([file for file in opened if file.startswith(str(cache))]) == 3


@contextlib.contextmanager
def room_for(files: int) -> Iterator[None]:
    """Let this process open so many further files only."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]  # the lowest numbers that are free
    try:
        for other in others[len(others) - files :]:
            os.close(other)
        resource.setrlimit(resource.RLIMIT_NOFILE, (others[-1] + 1, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for other in others[: len(others) - files]:
            os.close(other)


@pytest.mark.parametrize("cached", [True, False])
def test_too_many_open_files_are_told_as_such(store, cache, monkeypatch, caplog, cached):
    gc.collect()  # now, because it may close files
    rows = first_rows(store)
    if not cached:
        monkeypatch.delenv("RAYREID_CACHE")
    reading = ImageStore(store.directory)
    reading.images(rows[:1])
    refused = []
    for free in range(5):  # whichever call is the one that is refused
        with room_for(free):
            try:
                reading.images(rows[1:2])
            except UserError as error:
                refused.append(str(error))
    assert 0 < len(refused) < 5 and not caplog.records
    for line in refused:
        assert "open files, the limit" in line and "ulimit -n" in line


def test_a_cache_below_a_file_is_left_out(store, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYREID_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(shard_cache, "_warned", set())
    with caplog.at_level(logging.WARNING, "rayreid"):
        assert len(ImageStore(store.directory).images(first_rows(store))) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_damaged_original_is_not_copied(store, cache):
    path = store.files[0].path
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"00000.arrow: its bytes changed since the ingest"):
        ImageStore(store.directory).encoded(first_rows(store)[0])
    assert not copies(cache)


def test_a_missing_original_is_named(store, cache):
    store.files[0].path.unlink()
    with pytest.raises(UserError, match=r"00000.arrow: the shard is missing"):
        ImageStore(store.directory).encoded(first_rows(store)[0])


def test_what_a_killed_process_left_of_a_copy_is_overwritten(store, cache):
    cache.mkdir()
    (cache / f"{checksums(store)[0]}.tmp").write_bytes(b"half")
    ImageStore(store.directory).image(first_rows(store)[0])
    assert copies(cache) == {checksums(store)[0]} and not list(cache.glob("*.tmp"))


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
