"""The disturbed disk itself: what it sees, and what losses of power leave of it."""

import errno
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disk_calls import disturbed
from disturbed_disk import LOSSES, Disk, Disturbance, tree_of, write_tree
from rayreid.files import sync_file, sync_folder, write_atomically

KEPT, LOST = LOSSES["empty files"], LOSSES["old names of files"]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_every_operation_is_seen_whoever_makes_it(root):
    with disturbed(Disk(root)) as disk:
        write_atomically(root / "a.json", "{}")
        (root / "inner").mkdir()
        (root / "inner" / "touched").touch()
        (root / "inner" / "second").hardlink_to(root / "a.json")
        (root / "link").symlink_to("a.json")
        pq.write_table(pa.table({"a": [1]}), root / "inner" / "table.parquet")
        with pa.ipc.new_file(str(root / "shard.arrow"), pa.schema([("a", pa.int64())])) as writer:
            writer.write_batch(pa.record_batch([[1]], names=["a"]))
        shutil.rmtree(root / "inner")
        disk.check()
    assert disk.operations[:4] == [
        "create .a.json.*.tmp",
        "write .a.json.*.tmp",
        "sync .a.json.*.tmp",
        "rename a.json",
    ]
    kinds = [operation.partition(" ")[0] for operation in disk.operations]
    assert {"mkdir", "link", "remove", "rmdir"} <= set(kinds) and kinds.count("create") == 4
    assert pa.ipc.open_file(str(root / "shard.arrow")).num_record_batches == 1


def test_an_operation_that_is_not_seen_is_told(root):
    disk = Disk(root)
    (root / "file").touch()
    with pytest.raises(AssertionError, match=r"not seen: .*file"):
        disk.check()


def test_bytes_and_names_survive_once_they_are_synced(root):
    (root / "old").write_bytes(b"old")
    with disturbed(Disk(root)) as disk:
        (root / "new").write_bytes(b"12345678")
        (root / "old").write_bytes(b"replaced")
        assert disk.left(KEPT) == {"new": b"", "old": b"old"}
        assert disk.left(LOSSES["cut files"]) == {"new": b"1234", "old": b"repl"}
        assert disk.left(LOST) == {"old": b"old"}
        sync_file(root / "new")
        assert disk.left(KEPT) == {"new": b"12345678", "old": b"old"}
        assert disk.left(LOST) == {"old": b"old"}
        sync_folder(root)
        assert disk.left(LOST) == {"new": b"12345678", "old": b"old"}
        with (root / "new").open("ab") as stream:
            stream.write(b"abcd")
        assert disk.left(KEPT)["new"] == b"12345678" and disk.left(LOSSES["cut files"])["new"] == b"12345678ab"


def test_what_was_removed_or_renamed_comes_back(root):
    for name in ("removed", "renamed", "target"):
        (root / name).write_text(name)
    with disturbed(Disk(root)) as disk:
        (root / "removed").unlink()
        (root / "renamed").rename(root / "target")
        assert disk.left(LOST) == {name: name.encode() for name in ("removed", "renamed", "target")}
        assert disk.left(LOSSES["newest name"]) == {"removed": b"removed", "target": b"renamed"}
        assert disk.left(KEPT) == {"target": b"renamed"}
        sync_folder(root)
        assert disk.left(LOST) == {"target": b"renamed"}


def test_a_rename_between_folders_is_never_half_done(root):
    for name in ("one", "two"):
        (root / name).mkdir()
    (root / "one" / "file").write_text("bytes")
    with disturbed(Disk(root)) as disk:
        (root / "one" / "file").rename(root / "two" / "file")
        sync_folder(root / "one")
        assert disk.left(LOST) == {"one": None, "two": None, "two/file": b"bytes"}


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC"])
def test_errors_are_those_of_the_system(root, fault):
    with disturbed(Disk(root, Disturbance(1, fault))), pytest.raises(OSError) as told:
        (root / "file").write_bytes(b"12345678")
    assert told.value.errno == getattr(errno, fault) and told.value.filename is None  # as of a write
    with disturbed(Disk(root, Disturbance(0, fault))), pytest.raises(OSError) as told:
        (root / "new").touch()
    assert told.value.filename == str(root / "new") and not (root / "new").exists()


def test_a_full_disk_stays_full_and_lets_files_be_removed(root):
    (root / "old").touch()
    with disturbed(Disk(root, Disturbance(0, "ENOSPC"))):
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                (root / "new").touch()
        (root / "old").unlink()
    assert not tree_of(root)


def test_a_tree_can_be_written_again(root, tmp_path):
    (root / "inner").mkdir()
    (root / "inner" / "file").write_bytes(b"bytes")
    (root / "link").symlink_to("inner")
    tree = tree_of(root)
    write_tree(tmp_path / "other", tree)
    assert tree_of(tmp_path / "other") == tree and os.readlink(tmp_path / "other" / "link") == "inner"  # noqa: PTH115
