import errno
import os
import pickle
from pathlib import Path

import pytest
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem

from rayreid.data.datasets.cuhk03 import CUHK03
from rayreid.data.datasets.folder import Folder, open_folder
from rayreid.data.datasets.lmdb_store import LmdbStore
from rayreid.data.datasets.market1501 import Market1501
from rayreid.data.datasets.msmt17 import MSMT17
from rayreid.data.datasets.place import Place, is_uri
from rayreid.data.datasets.remote import RemoteFolder
from rayreid.data.datasets.table import Table
from rayreid.data.datasets.tar_shards import TarShards
from rayreid.data.store.shards import MissingImageError
from rayreid.data.store.store import Record
from rayreid.errors import UserError

NAMES = ("pool/b/2.JPG", "pool/a/1.png", "pool/a/deep/0.webp", "pool/c.bmp", "pool/notes.txt", "pool/a#b? ü.jpeg")
KEYS = ["a#b? ü.jpeg", "c.bmp", "a/1.png", "a/deep/0.webp", "b/2.JPG"]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path / "pool"


class Counting(FSSpecHandler):
    """Notes which folders are listed."""

    def __init__(self, fs):
        super().__init__(fs)
        self.listed: list[str] = []

    def get_file_info_selector(self, selector):
        self.listed.append(selector.base_dir)
        return super().get_file_info_selector(selector)


@pytest.fixture
def bucket():
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    for name in NAMES:
        fs.pipe(f"/bucket/{name}", name.encode())
    yield Counting(fs)
    fs.rm("/bucket", recursive=True)


def test_a_bucket_s_folder(bucket):
    dataset = RemoteFolder("s3://bucket/pool/", PyFileSystem(bucket))
    assert dataset.name == "folder"
    records = dataset.records()
    assert next(records).key == KEYS[0]
    assert bucket.listed == ["bucket/pool"]  # not yet what lies deeper
    records = list(dataset.records())
    assert [record.key for record in records] == KEYS
    assert {(record.pid, record.camid, record.split) for record in records} == {(-1, -1, "pool")}
    assert [dataset.read(record).decode() for record in records] == [f"pool/{key}" for key in KEYS]
    with pytest.raises(FileNotFoundError):
        dataset.read(Record("x.jpg", -1, -1, "pool", "bucket/pool/x.jpg"))
    with pytest.raises(UserError, match=r"s3://bucket/absent does not exist"):
        RemoteFolder("s3://bucket/absent", PyFileSystem(bucket))
    with pytest.raises(UserError, match=r"does not exist"):
        RemoteFolder("s3://bucket/pool/c.bmp", PyFileSystem(bucket))


def test_a_store_that_goes_away_ends_the_listing(folder):
    dataset = RemoteFolder("any://pool", SubTreeFileSystem(str(folder.parent), LocalFileSystem()))
    records = iter(dataset.records())
    assert next(records).key == KEYS[0]
    (folder / "a").rename(folder / "moved")
    with pytest.raises(UserError, match=r"any://pool: cannot list pool/a"):
        list(records)


def test_names_and_places_without_images(folder):
    with open(os.fsencode(folder) + b"/\xff.jpg", "wb"):  # noqa: PTH123
        pass
    (folder / "empty").mkdir()
    filesystem = SubTreeFileSystem(str(folder), LocalFileSystem())
    with pytest.raises(UserError, match=r"any://empty has no image"):
        list(RemoteFolder("any://empty", filesystem).records())
    dataset = RemoteFolder(folder.as_uri())
    assert [record.key for record in dataset.records()] == KEYS
    assert dataset.ignored == [("\\udcff.jpg", "name is not UTF-8")]
    list(dataset.records())
    assert len(dataset.ignored) == 1


def test_workers_open_the_filesystem_themselves(folder):
    dataset = RemoteFolder(folder.as_uri())
    record = next(dataset.records())
    sent = pickle.dumps(dataset.read)
    assert len(sent) < 1000
    assert b"FileSystem" not in sent
    assert pickle.loads(sent)(record) == f"pool/{KEYS[0]}".encode()


def test_folders_here_and_elsewhere_give_the_same(folder):
    here, by_uri = open_folder(str(folder)), open_folder(folder.as_uri())
    assert type(here) is type(by_uri) is Folder
    assert list(here.records()) == list(by_uri.records()) == list(RemoteFolder(folder.as_uri()).records())
    with pytest.raises(UserError, match=r"does not exist"):
        open_folder((folder / "absent").as_uri())
    with pytest.raises(UserError, match=r"needs a root"):
        open_folder(None)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("xyz://bucket/pool", "cannot be opened: Unrecognized filesystem"),
        ("s3://?region=a b", "cannot be opened: "),
        ("s3://", "names no bucket"),
        ("gs://", "names no bucket"),
    ],
)
def test_uris_that_name_no_place(uri, message):
    with pytest.raises(UserError, match=message) as error:
        open_folder(uri)
    assert uri in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:secret@bucket/pool",
        "s3://AKIA:secret/with/slashes@bucket/pool",
        "abfs://:secret@bucket/pool",
        "file://me:secret@bucket/pool",
        "xyz://me:secret@bucket/pool",
        "s3://pool?endpoint_override=http://me:secret@bucket/pool",
    ],
)
@pytest.mark.parametrize("opened", [open_folder, Place, Market1501, Table])
def test_passwords_are_refused_and_stay_out_of_messages(uri, opened):
    with pytest.raises(UserError, match=r"://\*\*\*@bucket/pool: take the password out .* environment") as error:
        opened(uri)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("uri", ["gs://anonymous@bucket/a:b@c", "s3://bucket/a:b@c", "hdfs://host:8020/a@b"])
def test_users_ports_and_names_are_no_passwords(folder, uri):
    assert str(Place(uri, LocalFileSystem())) == uri


@pytest.mark.parametrize("opened", [CUHK03, LmdbStore, Market1501, MSMT17, TarShards])
def test_datasets_of_local_files_take_no_other_uri(folder, opened):
    with pytest.raises(UserError, match=r"needs a local path; s3://bucket/pool can be read by folder and table"):
        opened("s3://bucket/pool")
    with pytest.raises(UserError, match=f": {folder}/absent does not exist"):
        opened((folder / "absent").as_uri())


def test_places(tmp_path, monkeypatch):
    assert [is_uri(root) for root in (None, tmp_path, "a/b", "C:/x", "s3://b/c")] == [False] * 4 + [True]
    monkeypatch.chdir(tmp_path)
    place = Place("lists/a.csv")
    assert place.path == str(tmp_path / "lists/a.csv")
    assert place.is_local
    assert place.folder().path == str(tmp_path / "lists")
    assert place.folder("../images").path == str(tmp_path / "images")
    assert place.folder("/images").path == "/images"
    assert place.path == str(tmp_path / "lists/a.csv")
    for name in ("a\0b", str(tmp_path)):
        with pytest.raises(MissingImageError):
            place.read(name)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError) as error:
        place.read(str(tmp_path / "loop"))
    assert error.value.errno == errno.ELOOP  # by which an ingest tells that only this image is at fault
