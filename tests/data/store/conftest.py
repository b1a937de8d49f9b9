"""Fixtures for the cache of shards: a small store, a folder for copies, a disk of limited size, an object store."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from rayreid.data.store import shard_cache
from rayreid.data.store.shard_files import ShardFile
from rayreid.data.store.store import ImageStore
from small_store import small_store


@pytest.fixture
def store(tmp_path) -> ImageStore:
    return small_store(tmp_path / "store")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RAYREID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_cache, "_warned", set())
    return tmp_path / "cache"


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def disk(cache, monkeypatch) -> Callable[[int], None]:
    """A disk on which the files of the cache have a given number of bytes beyond what stays free."""

    def limit(room: int) -> None:
        def usage(folder: Path) -> Usage:
            used = sum(path.stat().st_size for path in Path(folder).iterdir())
            total = 10**9
            return Usage(total, used, int(shard_cache.KEEP_FREE * total) + room - used)

        monkeypatch.setattr(shutil, "disk_usage", usage)

    return limit


@pytest.fixture
def far_away(monkeypatch) -> None:
    """Stores are read as if they were in an object store."""
    monkeypatch.setattr(ShardFile, "path", None)
