"""What the storage refuses is one line that names the place; other errors stay what they are."""

import errno
import os
import pickle
import sqlite3
import tempfile
from pathlib import Path

import pytest

from disk_calls import disturbed
from disturbed_disk import Disk, Disturbance
from rayreid.disk_faults import StorageError, as_storage_error, explained
from rayreid.errors import UserError
from rayreid.files import naming, replacing, sync_folder


def refused(code: int, path: Path | None = None) -> OSError:
    return OSError(code, os.strerror(code), *([str(path)] if path else []))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no room is left on this disk (No space left on device): make room"),
        (errno.EDQUOT, "no room is left on this disk (Disk quota exceeded): make room"),
        (errno.EACCES, "access is refused (Permission denied): permit it to this user"),
        (errno.EROFS, "access is refused (Read-only file system)"),
        (errno.EIO, "the storage does not answer (Input/output error): repair or mount it"),
        (errno.ESTALE, "the storage does not answer"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_folder(tmp_path, code, words):
    with pytest.raises(StorageError) as told, explained(tmp_path):
        raise refused(code, tmp_path / "stage" / ".file.0123.tmp")
    assert str(told.value).startswith(f"{tmp_path / 'stage'}: {words}")
    assert "\n" not in str(told.value) and isinstance(told.value, UserError)
    assert str(pickle.loads(pickle.dumps(told.value))) == str(told.value)


def test_a_file_that_cannot_be_opened_is_named_itself(tmp_path):
    (tmp_path / "file").touch()
    assert str(as_storage_error(refused(errno.EACCES, tmp_path / "file"), tmp_path)).startswith(f"{tmp_path / 'file'}:")


def test_a_full_disk_without_a_path_is_the_one_with_the_least_room(tmp_path, monkeypatch):
    full, roomy = tmp_path / "full", tmp_path / "roomy"
    full.mkdir()
    roomy.mkdir()
    free = {full: 0, roomy: 10}
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": free[folder]}))
    monkeypatch.setattr(tempfile, "tempdir", str(full))
    assert str(as_storage_error(refused(errno.ENOSPC), roomy)).startswith(f"{full}: ")
    monkeypatch.setattr(tempfile, "tempdir", str(roomy))
    assert str(as_storage_error(refused(errno.ENOSPC), full)).startswith(f"{full}: ")


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("1000000 requested and 131056 written"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598"),
        RuntimeError("ray::train()\nTraceback …\nOSError: [Errno 28] No space left on device"),
    ],
)
def test_libraries_that_only_say_so_are_understood(tmp_path, error):
    assert "no room is left" in str(as_storage_error(error, tmp_path))


def test_the_error_behind_another_one_is_found(tmp_path):
    class TaskError(Exception):
        cause = refused(errno.ENOSPC, tmp_path / "x")

    with pytest.raises(StorageError), explained(tmp_path):
        raise TaskError("remote traceback")
    with pytest.raises(StorageError), explained(tmp_path):
        try:
            raise refused(errno.ENOSPC)
        except OSError:
            raise RuntimeError("the file's end cannot be written") from None


def test_the_error_that_has_a_path_says_most(tmp_path):
    with pytest.raises(StorageError, match=f"{tmp_path}/checkpoints: "), explained(tmp_path):
        try:
            raise refused(errno.ENOSPC, tmp_path / "checkpoints" / "file")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598") from None


def test_what_was_explained_stays_so_whatever_fails_after_it(tmp_path):
    with pytest.raises(StorageError, match=r"^first$"), explained(tmp_path):
        try:
            raise StorageError("first")
        except StorageError:
            raise sqlite3.OperationalError("attempt to write a readonly database") from None


def test_a_folder_that_vanishes_is_named(tmp_path):
    gone = tmp_path / "stage" / "id"
    with pytest.raises(StorageError, match=f"{gone}: this folder has vanished while it was in use"), explained(gone):
        (gone / "checkpoints").mkdir()


@pytest.mark.parametrize(
    "error", [ValueError("no"), FileNotFoundError(2, "No such file", "other"), ConnectionError(107, "not connected")]
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, explained(tmp_path):
        raise error
    assert raised.value is error


def test_a_users_error_stays_what_it_is(tmp_path):
    with pytest.raises(UserError, match=r"^mend it$"), explained(tmp_path):
        raise UserError("mend it")


def test_a_write_that_fails_names_its_file_and_leaves_no_temporary(tmp_path):
    with pytest.raises(OSError) as raised, replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise refused(errno.ENOSPC)
    assert raised.value.filename == str(tmp_path / "file") and list(tmp_path.iterdir()) == []
    copied = refused(errno.ENOSPC, Path("/source"))
    copied.filename2 = "/target"
    with pytest.raises(OSError) as raised, naming(tmp_path / "file"):
        raise copied
    assert raised.value.filename == str(tmp_path / "file")


def test_a_folder_that_cannot_be_written_to_the_disk_is_named_itself(tmp_path):
    with disturbed(Disk(tmp_path, Disturbance(0, "EIO"))), pytest.raises(StorageError) as told, explained(tmp_path):
        sync_folder(tmp_path)
    assert str(told.value).startswith(f"{tmp_path}: the storage does not answer")
