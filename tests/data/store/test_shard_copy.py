"""Damaged copies, which are made again, and the lock of an unfinished copy."""

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rayreid.data.store import shard_cache
from rayreid.data.store.shard_copy import Copy, UnfinishedCopy, hold, remove_unused
from rayreid.data.store.shard_files import ShardFile
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from shard_copies import checksums, copies, first_rows, images


@pytest.fixture
def copied(monkeypatch) -> list[str]:
    """The shards that are copied from now on, by their paths."""
    opened, found = ShardFile.open, []

    def recorded(shard: ShardFile):
        found.append(str(shard))
        return opened(shard)

    monkeypatch.setattr(ShardFile, "open", recorded)
    return found


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    """Change a byte of the first image."""
    with path.open("r+b") as file:
        place = file.read().index(b"IDAT") + 10
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("damage", [cut, empty, flip])
def test_a_damaged_copy_is_made_again(store, cache, copied, caplog, damage: Callable[[Path], None]):
    expected = images(ImageStore(store.directory))
    path = cache / f"{checksums(store)[0]}.arrow"
    whole = path.read_bytes()
    damage(path)
    copied.clear()
    assert images(ImageStore(store.directory)) == expected
    assert copied == [str(store.files[0])] and path.read_bytes() == whole
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: this copy of a shard is damaged, and is made again"
    ]


def test_a_copy_that_is_damaged_while_it_is_read_is_made_again(store, cache, copied):
    reading = ImageStore(store.directory)
    expected = images(reading)
    for checksum in checksums(store):
        flip(cache / f"{checksum}.arrow")  # in the same file, which is mapped
    copied.clear()
    assert images(reading) == expected and len(copied) == 3


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_copy_that_is_damaged_again_is_not_made_for_ever(store, cache, copied, monkeypatch, damage):
    synced = UnfinishedCopy.sync
    monkeypatch.setattr(UnfinishedCopy, "sync", lambda self: (synced(self), damage(self.path)))
    row = first_rows(store)[0]
    with pytest.raises(UserError) as refused:
        ImageStore(store.directory).encoded(row)
    assert len(copied) == 2
    line = str(refused.value)
    assert line.startswith(str(cache / checksums(store)[0])) and "\n" not in line and "delete" in line


def test_what_another_process_copied_meanwhile_is_used(store, cache, copied):
    reading = ImageStore(store.directory)
    expected = images(reading)
    path = cache / f"{checksums(store)[0]}.arrow"
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    flip(path)
    other.rename(path)
    new = path.stat()
    copied.clear()
    assert images(reading) == expected
    assert not copied and os.path.samestat(new, path.stat())


def test_threads_that_meet_the_same_damage_copy_once(store, cache, copied):
    reading = ImageStore(store.directory)
    expected = images(reading)
    flip(cache / f"{checksums(store)[0]}.arrow")
    copied.clear()
    row, found = first_rows(store)[0], []
    threads = [threading.Thread(target=lambda: found.append(bytes(reading.encoded(row)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == 8 * [expected[row]] and len(copied) == 1


def test_a_damaged_copy_whose_original_is_gone_is_named(store, cache):
    ImageStore(store.directory).encoded(first_rows(store)[0])
    flip(cache / f"{checksums(store)[0]}.arrow")
    store.files[0].path.unlink()
    with pytest.raises(UserError, match=r"00000.arrow: the shard is missing"):
        ImageStore(store.directory).encoded(first_rows(store)[0])
    assert not copies(cache)


def test_a_writer_that_waited_sees_that_the_file_was_finished(tmp_path):
    temporary, finished = tmp_path / "copy.tmp", tmp_path / "copy.arrow"
    waited: list[bool] = []

    def wait() -> None:
        with UnfinishedCopy(temporary) as late:
            waited.append(late.is_current())

    with UnfinishedCopy(temporary) as first:
        thread = threading.Thread(target=wait)
        thread.start()
        first.write(b"bytes")
        thread.join(0.2)
        assert thread.is_alive()
        first.finish(finished)
    thread.join()
    assert waited == [False] and finished.read_bytes() == b"bytes" and list(tmp_path.iterdir()) == [finished]


def test_a_writer_that_waited_does_not_wait_for_the_readers_of_the_finished_copy(tmp_path):
    temporary, finished = tmp_path / "copy.tmp", tmp_path / "copy.arrow"
    temporary.write_bytes(b"bytes")
    with temporary.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)  # as a reader that was faster than the writer who waits
        thread = threading.Thread(target=lambda: UnfinishedCopy(temporary).__exit__(), daemon=True)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        temporary.rename(finished)
        thread.join(5)
        assert not thread.is_alive() and finished.read_bytes() == b"bytes"


def test_an_interrupt_while_another_process_writes_leaves_its_file(tmp_path, monkeypatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with UnfinishedCopy(tmp_path / "copy.tmp") as writing:
        monkeypatch.setattr(time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            UnfinishedCopy(tmp_path / "copy.tmp")
        assert writing.is_current()


def test_a_copy_that_was_finished_before_the_lock_was_taken_is_not_made_again(store, cache, copied, monkeypatch):
    ImageStore(store.directory).encoded(first_rows(store)[0])
    answers = [lambda path: None]  # as if there were none yet
    monkeypatch.setattr(shard_cache, "hold", lambda path: (answers.pop() if answers else hold)(path))
    copied.clear()
    ImageStore(store.directory).encoded(first_rows(store)[0])
    assert not copied and not list(cache.glob("*.tmp"))


def test_a_writer_that_waited_for_one_that_failed_copies_once(store, cache, copied):
    cache.mkdir()
    row = first_rows(store)[0]
    with UnfinishedCopy(cache / f"{checksums(store)[0]}.tmp"):
        thread = threading.Thread(target=ImageStore(store.directory).encoded, args=[row])
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join()
    assert copied == [str(store.files[0])] and copies(cache) == {checksums(store)[0]}


def test_a_file_that_was_removed_while_it_was_written_gets_no_name(tmp_path):
    with UnfinishedCopy(tmp_path / "copy.tmp") as unfinished:
        unfinished.write(b"first")
        (tmp_path / "copy.tmp").unlink()
        with UnfinishedCopy(tmp_path / "copy.tmp") as other:
            other.write(b"other")
            unfinished.finish(tmp_path / "copy.arrow")
            assert not (tmp_path / "copy.arrow").exists() and other.is_current()


def test_a_process_that_was_forked_while_a_copy_was_written_does_not_keep_its_lock(tmp_path):
    with UnfinishedCopy(tmp_path / "copy.tmp") as unfinished:
        inherited = os.dup(unfinished._file.fileno())
        unfinished.finish(tmp_path / "copy.arrow")
    with (tmp_path / "copy.arrow").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # an error if the lock were still held
    os.close(inherited)


def test_what_a_process_holds_is_not_removed(tmp_path):
    path = tmp_path / "copy.arrow"
    path.write_bytes(b"bytes")
    held = hold(path)
    assert isinstance(held, Copy) and not remove_unused(path)
    view = memoryview(held.map())  # which takes the lock over
    assert held.lock.closed and not remove_unused(path) and bytes(view) == b"bytes"
    del view
    assert remove_unused(path) and hold(path) is None and not remove_unused(path)


def test_a_file_that_was_replaced_before_it_could_be_locked_is_not_removed(tmp_path, monkeypatch):
    path, lock = tmp_path / "copy.arrow", fcntl.flock
    path.write_bytes(b"first")
    (tmp_path / "other").write_bytes(b"other")

    def replace(*arguments) -> None:
        (tmp_path / "other").replace(path)
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", replace)
    assert not remove_unused(path) and path.read_bytes() == b"other"
