"""The output root: one folder, whatever the locale is."""

import os
from pathlib import Path

import pytest

from rayreid.data.datasets.folder import Folder
from rayreid.data.datasets.table import Table
from rayreid.errors import UserError
from rayreid.inference.named_inputs import place
from rayreid.paths import cache_folder, data_path, expanded, output_root


def test_a_root_of_any_name_is_taken_as_it_is(tmp_path, monkeypatch):
    for name in ("my outputs", "run#2", "50%20off", "a?b", "ü", "人"):
        monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / name))
        assert output_root() == tmp_path / name


def test_a_name_that_is_not_utf8_is_refused(monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", "/caffe\udce9")
    with pytest.raises(UserError, match="PYTHONUTF8=1"):
        output_root()


def test_a_name_that_the_locale_reads_otherwise_is_refused(monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", "/ü")
    monkeypatch.setattr(os, "fsencode", lambda path: str(Path(path)).encode("latin-1"))
    with pytest.raises(UserError, match=r"/ü: .*PYTHONUTF8=1"):
        output_root()


def test_a_home_folder_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/pool") == Path("/home/me/pool") and expanded("a/~b") == Path("a/~b")
    for variable, read in (("RAYREID_ROOT", output_root), ("RAYREID_CACHE", cache_folder)):
        monkeypatch.setenv(variable, "~nobody-here/x")
        with pytest.raises(UserError, match="there is no home folder ~nobody-here"):
            read()
    for read in (data_path, Folder, Table, place):
        with pytest.raises(UserError, match=r"^~nobody-here/x\.csv: there is no home folder ~nobody-here here"):
            read("~nobody-here/x.csv")
