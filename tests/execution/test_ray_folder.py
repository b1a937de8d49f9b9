"""Ray's folder is its user's alone, and its path is short enough for the sockets in it."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from rayreid.errors import UserError
from rayreid.execution.ray_folder import ray_folder

SOCKET = "r/session_2026-11-27_12-51-14_546791_4194304/sockets/plasma_store"


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


def folder_of(length: int, parent: Path) -> Path:
    """A new folder whose path has `length` bytes."""
    path = parent / ("x" * (length - len(str(parent)) - 1))
    path.mkdir()
    return path


@pytest.fixture
def short():
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s") as name:
        yield Path(name)


def test_it_is_made_for_temporary_files_for_its_user_alone_and_removed(monkeypatch, short):
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    with ray_folder() as one, ray_folder() as another:
        assert one.parent == another.parent == short and one != another
        assert one.stat().st_mode & 0o777 == 0o700
        (one / "session").mkdir()
    assert list(short.iterdir()) == []


@pytest.mark.parametrize(("length", "used"), [(29, True), (30, False), (150, False)])
def test_a_long_folder_for_temporary_files_is_left_for_tmp(monkeypatch, short, length, used):
    monkeypatch.setattr(tempfile, "tempdir", str(folder_of(length, short)))
    with ray_folder() as folder:
        assert folder.parent == (Path(tempfile.tempdir) if used else Path("/tmp"))
        place = folder / SOCKET
        place.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.fsencode(place))


def test_the_user_s_own_choice_is_used_or_refused_by_name(monkeypatch, short):
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    with ray_folder() as folder:
        assert folder.parent == short
    monkeypatch.setenv("RAY_TMPDIR", str(folder_of(80, short)))
    with (
        pytest.raises(UserError, match=r"RAY_TMPDIR=/tmp/.* has 80 bytes, but Ray's sockets allow 29.*/tmp$"),
        ray_folder(),
    ):
        pass
    monkeypatch.setenv("RAY_TMPDIR", str(short / "no"))
    with pytest.raises(UserError, match=r"cannot be started here \(/tmp/.*No such file.*RAY_TMPDIR"), ray_folder():
        pass
