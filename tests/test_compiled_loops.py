"""Compiled loops: cached where the user can write, else in a temporary folder of this user's alone."""

import logging
import os
import tempfile
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import caching

from rayreid.compiled_loops import compiled


def total(values):
    result = 0.0
    for value in values:
        result += value
    return result


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """Neither the installation nor the user's cache folder can be written; gives the folder for temporary files."""

    def refuse(locator):
        raise PermissionError(13, "Permission denied", locator.get_cache_path())

    for locator in (caching.InTreeCacheLocator, caching.UserWideCacheLocator):
        monkeypatch.setattr(locator, "ensure_cache_path", refuse)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_read_only_installation_caches_in_a_temporary_folder_and_says_so_once(read_only, caplog):
    with caplog.at_level(logging.WARNING, "rayreid"):
        first, second = compiled()(total), compiled(fastmath=True)(total)
    assert first(np.ones(3)) == second(np.ones(3)) == 3
    [folder] = read_only.iterdir()
    assert list(folder.rglob("*.nbi")) and folder.stat().st_mode & 0o077 == 0
    [line] = caplog.messages
    assert str(folder) in line and "NUMBA_CACHE_DIR" in line
    assert os.environ["NUMBA_CACHE_DIR"] == str(folder)


def test_a_folder_that_others_may_write_is_not_used_for_code(read_only):
    planted = read_only / f"rayreid-numba-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    assert compiled()(total)(np.ones(3)) == 3
    assert list(planted.iterdir()) == []
    assert Path(os.environ["NUMBA_CACHE_DIR"]).stat().st_mode & 0o077 == 0


def test_without_any_place_the_function_is_compiled_uncached(read_only, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(read_only / "missing"))
    assert compiled()(total)(np.ones(3)) == 3
