import json
import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem

from in_process import work_on
from rayreid.config.inputs import Source
from rayreid.data.datasets import open_dataset
from rayreid.data.store import shard_cache
from rayreid.data.store.inspection import summarise
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.stages import ingest
from small_store import small_store

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ImageStore:
    return small_store(tmp_path_factory.mktemp("elsewhere") / "store")


@pytest.fixture(scope="module")
def bucket(store):
    """The store's address at an S3 server of this machine."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        host, port = server.get_host_and_port()
        options = f"endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true"
        filesystem, _ = FileSystem.from_uri(f"s3://bucket?{options}")
        filesystem.create_dir("bucket")
        for path in sorted(store.directory.rglob("*")):
            if path.is_file():
                with filesystem.open_output_stream(f"bucket/{path.relative_to(store.directory)}") as stream:
                    stream.write(path.read_bytes())
        yield f"s3://bucket?{options}"
    server.stop()


def adopted(root: str, output: Path) -> ImageStore:
    artifact = ingest.plan(output, Source(dataset="store", root=root))
    facts = artifact.job(work_on(artifact))
    assert facts["images"] == 12 and facts["dataset"] == "mine V1"
    return ImageStore(artifact.path)


def test_a_store_in_a_bucket_is_read_through_the_cache(store, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_CACHE", str(tmp_path / "cache"))
    found = adopted(bucket, tmp_path / "outputs")
    assert found.fingerprint == store.fingerprint and found.keys.tolist() == store.keys.tolist()
    assert [bytes(found.encoded(row)) for row in range(12)] == [bytes(store.encoded(row)) for row in range(12)]
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 3
    assert not (found.directory / "shards").exists()
    found.verify()
    assert summarise(found).missing == () and summarise(found).shard_bytes == summarise(store).shard_bytes


def test_a_store_on_shared_storage_is_read_where_it_is(store, tmp_path, monkeypatch):
    monkeypatch.delenv("RAYREID_CACHE", raising=False)
    found = adopted(str(store.directory), tmp_path)
    assert [bytes(found.encoded(row)) for row in range(12)] == [bytes(store.encoded(row)) for row in range(12)]
    assert adopted(str(found.directory), tmp_path / "again").manifest["origin"] == str(store.directory)


def test_a_bucket_s_shard_cannot_do_without_the_cache(bucket, tmp_path, monkeypatch):
    found = adopted(bucket, tmp_path / "outputs")
    monkeypatch.setenv("RAYREID_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(shard_cache, "KEEP_FREE", 1.0)
    with pytest.raises(UserError, match=r"full: no room for a shard .*set RAYREID_CACHE to a folder on another disk"):
        ImageStore(found.directory).image(0)


def test_a_bucket_s_shards_are_read_in_order_through_a_disk_that_holds_one(
    store, bucket, tmp_path, monkeypatch, caplog
):
    found, cache = adopted(bucket, tmp_path / "outputs"), tmp_path / "small"
    expected = [bytes(store.encoded(row)) for row in range(12)]
    room = max(shard.size() for shard in store.files)

    def usage(folder: Path) -> Usage:
        used = sum(path.stat().st_size for path in cache.iterdir())
        return Usage(room, used, room - used)

    monkeypatch.setenv("RAYREID_CACHE", str(cache))
    monkeypatch.setattr(shard_cache, "KEEP_FREE", 0.0)
    monkeypatch.setattr(shard_cache, "_warned", set())
    monkeypatch.setattr(shutil, "disk_usage", usage)
    for _ in range(2):
        assert [bytes(found.encoded(row)) for row in range(12)] == expected
    assert len(list(cache.iterdir())) == 1
    (said,) = [record.message for record in caplog.records if record.name == "rayreid"]
    assert "does not hold all shards of s3://bucket?" in said


def test_a_shard_that_is_missing_in_the_bucket_is_named(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_CACHE", str(tmp_path / "cache"))
    found = adopted(bucket, tmp_path / "outputs")
    manifest = found.directory / "manifest.json"
    manifest.write_text(manifest.read_text().replace("shards/00001", "shards/00007"))
    with pytest.raises(UserError, match=r"00007.arrow.*the shard is missing"):
        ImageStore(found.directory).images(range(12))


def test_its_records_are_those_of_the_index(store):
    records = list(open_dataset("store", str(store.directory)).records())
    assert [record.key for record in records] == store.keys.tolist()
    assert {record.split for record in records} == {"pool"} and {record.pid for record in records} == {-1}


def test_what_is_no_store_is_refused(store, tmp_path):
    with pytest.raises(UserError, match="needs a root"):
        open_dataset("store", None)
    with pytest.raises(UserError, match=r"there is no manifest\.json"):
        open_dataset("store", str(tmp_path))
    shutil.copytree(store.directory, tmp_path / "copy")
    manifest = tmp_path / "copy" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(UserError, match="store format 99"):
        open_dataset("store", str(tmp_path / "copy"))
    manifest.write_text("[]")
    with pytest.raises(UserError, match="no image store's manifest"):
        open_dataset("store", str(tmp_path / "copy"))
