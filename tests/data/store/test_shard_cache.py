import contextlib
import errno
import fcntl
import gc
import io
import logging
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayreid.data.store.shard_files import ShardFile
from rayreid.data.store.store import ImageStore
from rayreid.diagnostics.node_health import Examination
from rayreid.errors import UserError
from rayreid.paths import cache_folder
from shard_copies import checksums, copies, first_rows, images, sizes

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


def test_a_shard_is_copied_when_its_first_image_is_needed(store, tmp_path, monkeypatch):
    monkeypatch.delenv("RAYREID_CACHE", raising=False)
    expected = images(store)
    cache = tmp_path / "cache"
    monkeypatch.setenv("RAYREID_CACHE", str(cache))
    again = ImageStore(store.directory)
    assert not cache.exists()
    again.encoded(first_rows(store)[1])
    assert copies(cache) == {checksums(store)[1]}
    assert images(again) == expected
    assert copies(cache) == set(checksums(store))
    shutil.rmtree(store.directory / "shards")  # the originals are not needed any more
    assert images(ImageStore(store.directory)) == expected


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


@pytest.mark.parametrize(("module", "name"), [(fcntl, "flock"), (shutil, "disk_usage")])
def test_a_cache_on_a_disk_without_locks_or_sizes_is_left_out(store, cache, monkeypatch, caplog, module, name):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(module, name, refuse)
    with caplog.at_level(logging.WARNING, "rayreid"):
        assert len(ImageStore(store.directory).images(first_rows(store))) == 3
    (said,) = [record.message for record in caplog.records]
    assert said == f"RAYREID_CACHE={cache}: No locks available; shards are read from where they were written"
    assert not list(cache.iterdir())


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


def test_a_cache_below_a_file_is_left_out(store, cache, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache"
    monkeypatch.setenv("RAYREID_CACHE", str(folder))
    assert len(ImageStore(store.directory).images(first_rows(store))) == 3
    (said,) = [record.message for record in caplog.records]
    assert said == f"RAYREID_CACHE={folder}: Not a directory; shards are read from where they were written"


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


def test_an_original_that_does_not_arrive_whole_did_not_change(store, cache, monkeypatch):
    monkeypatch.setattr(ShardFile, "open", lambda self: io.BytesIO(self.path.read_bytes()[:100]))
    with pytest.raises(UserError) as refused:
        ImageStore(store.directory).encoded(first_rows(store)[0])
    line = f"the storage sent 100 of {sizes(store)[0]} bytes; run the command again"
    assert str(refused.value) == f"{store.files[0]}: {line}"
    assert not list(cache.iterdir())


class Failing(io.BytesIO):
    """A stream whose second read fails, as that of a storage whose connection is lost."""

    def read(self, size=-1):
        if self.tell():
            raise OSError("AWS Error NETWORK_CONNECTION\nduring GetObject")
        return super().read(100)


def test_an_original_that_fails_while_it_is_read_is_named_in_one_line(store, cache, monkeypatch):
    monkeypatch.setattr(ShardFile, "open", lambda self: Failing(self.path.read_bytes()))
    with pytest.raises(UserError) as refused:
        ImageStore(store.directory).encoded(first_rows(store)[0])
    assert str(refused.value) == f"{store.files[0]}: the shard cannot be read (AWS Error NETWORK_CONNECTION)"
    assert not list(cache.iterdir())


def test_a_folder_that_vanishes_while_a_copy_is_written_is_made_again(store, cache, monkeypatch, caplog):
    opened, removed = ShardFile.open, []

    def remove(shard: ShardFile):
        if not removed:
            removed.append(cache)
            shutil.rmtree(cache)
        return opened(shard)

    monkeypatch.setattr(ShardFile, "open", remove)
    ImageStore(store.directory).encoded(first_rows(store)[0])
    assert removed and copies(cache) == {checksums(store)[0]} and not caplog.records


@pytest.fixture
def default_folder(tmp_path, far_away, monkeypatch) -> Path:
    """The folder that is used without the variable, which is not there yet."""
    monkeypatch.delenv("RAYREID_CACHE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"rayreid-cache-{os.getuid()}"


def test_the_default_folder_is_for_this_user_alone(store, default_folder):
    ImageStore(store.directory).encoded(first_rows(store)[0])
    assert stat.S_IMODE(default_folder.stat().st_mode) == 0o700 and copies(default_folder) == {checksums(store)[0]}
    default_folder.chmod(0o755)  # as earlier versions made it
    ImageStore(store.directory).encoded(first_rows(store)[0])
    assert stat.S_IMODE(default_folder.stat().st_mode) == 0o700


def test_a_named_folder_keeps_its_permissions(store, cache):
    cache.mkdir()
    cache.chmod(0o775)
    ImageStore(store.directory).encoded(0)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o775


@pytest.mark.parametrize("made", ["a link", "another user's", "a file"])
def test_a_default_folder_that_others_may_have_made_is_refused(store, default_folder, tmp_path, monkeypatch, made):
    if made == "a link":
        (tmp_path / "elsewhere").mkdir()
        default_folder.symlink_to(tmp_path / "elsewhere")
    elif made == "a file":
        default_folder.write_text("")
    else:
        default_folder.mkdir()
        user = os.getuid()
        default_folder = default_folder.rename(tmp_path / f"rayreid-cache-{user + 1}")
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(UserError) as refused:
        ImageStore(store.directory).encoded(0)
    assert str(refused.value) == (
        f"{default_folder}: this is not a folder of this user's own; set RAYREID_CACHE to a folder on a disk of this "
        "node that can be written"
    )
    assert not list(tmp_path.rglob("*.arrow.*")) and not copies(default_folder)


@pytest.mark.parametrize("value", ["s3://bucket/cache", "file:///cache"])
def test_a_cache_is_named_by_a_path(store, monkeypatch, value):
    monkeypatch.setenv("RAYREID_CACHE", value)
    line = f"RAYREID_CACHE={value}: not a path; name a folder on a disk of each node"
    with pytest.raises(UserError) as refused:
        ImageStore(store.directory).encoded(0)
    assert str(refused.value) == line
    assert line in Examination([], None)().faults


def test_a_relative_cache_is_refused_inside_a_job(monkeypatch):
    monkeypatch.setenv("RAYREID_CACHE", "cache")
    assert cache_folder() == Path.cwd() / "cache"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"^cache: relative path inside .*set RAYREID_CACHE to .* a disk of each node$"):
        cache_folder()
    monkeypatch.setenv("RAYREID_CACHE", "/cache")
    assert cache_folder() == Path("/cache")
