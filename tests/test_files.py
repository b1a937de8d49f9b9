import errno
import os

import pytest

from disk_calls import disturbed
from disturbed_disk import LOSSES, Disk, Disturbance
from rayreid.errors import UserError
from rayreid.files import append_lines, make_folder, naming, remove_temporaries, replacing, write_atomically


def test_an_atomic_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "a long first content")
    write_atomically(path, "ä")
    assert path.read_text(encoding="utf-8") == "ä"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_an_interrupted_atomic_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, moment):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_whole_or_not_there(tmp_path):
    (tmp_path / "w.pth").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "w.pth") as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_the_temporary_file_of_a_killed_writer_can_be_found_and_removed(tmp_path):
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
        (tmp_path / "killed").hardlink_to(temporary)
        (tmp_path / "killed").rename(temporary.with_name(f"of_another{temporary.name}"))
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/outputs.*RAYREID_ROOT"):
        make_folder(tmp_path / "file" / "outputs")


@pytest.mark.parametrize("another", ["removed it", "made it and removed it"])
def test_a_folder_that_others_make_and_remove_meanwhile_is_made(tmp_path, monkeypatch, another):
    mkdir, lost = os.mkdir, []

    def lose(path, mode=0o777):
        if path != tmp_path / "outputs" or len(lost) == 3:
            mkdir(path, mode)
            return
        lost.append(path)
        if another == "made it and removed it":
            raise FileExistsError(17, "File exists", str(path))

    monkeypatch.setattr(os, "mkdir", lose)
    make_folder(tmp_path / "outputs" / "run")
    assert (tmp_path / "outputs" / "run").is_dir() and len(lost) == 3


def test_lines_are_whole_and_durable_once_they_are_appended(tmp_path):
    path = tmp_path / "list"
    with disturbed(Disk(tmp_path)) as disk:
        append_lines(path, b"one\n")
        append_lines(path, b"two\nthree\n")
        assert all(disk.left(loss) == {"list": b"one\ntwo\nthree\n"} for loss in LOSSES.values())


def test_a_line_that_was_cut_does_not_run_into_the_next(tmp_path):
    path = tmp_path / "list"
    path.write_bytes(b"one\ntw")
    append_lines(path, b"three\n")
    assert path.read_bytes() == b"one\ntw\nthree\n"


@pytest.mark.parametrize("place", range(3))
def test_an_append_that_fails_is_not_tried_again_and_names_the_file(tmp_path, place):
    path = tmp_path / "list"
    with disturbed(Disk(tmp_path, Disturbance(place, "EIO"))), pytest.raises(OSError, match="Input/output") as told:
        append_lines(path, b"one two\n")
    assert told.value.filename == str(path)
    assert not path.exists() or path.read_bytes() in (b"", b"one ", b"one two\n")


def test_an_error_that_is_given_a_path_names_no_second_one(tmp_path):
    with pytest.raises(OSError, match="full") as caught, naming(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "full", "source", None, "copy")
    assert str(caught.value) == f"[Errno {errno.ENOSPC}] full: '{tmp_path / 'a'}'"
