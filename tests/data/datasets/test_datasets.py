import errno
import os
import pickle
from collections import Counter
from pathlib import Path

import pytest

from rayreid.data.datasets import DATASETS, open_dataset
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError

RESPLIT = Path(os.environ.get("RAYREID_DATA", "")) / "market1501-resplit"


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.fixture
def market(tmp_path) -> Path:
    root = tmp_path / "Market-1501"
    touch(
        root,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0007_c3s3_077419_03.jpg",
        "bounding_box_train/Thumbs.db",
        "bounding_box_train/odd name.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/-1_c6s1_000401_03.jpg",
        "bounding_box_test/0000_c5s1_000151_01.jpg",
        "bounding_box_test/0001_c2s1_000301_00.jpg.jpg",
    )
    return root


def test_market1501_reads_identity_and_camera_from_names(market):
    dataset = open_dataset("market1501", str(market))
    assert [(record.key, record.pid, record.camid, record.split) for record in dataset.records()] == [
        ("bounding_box_test/-1_c6s1_000401_03.jpg", -1, 6, "gallery"),
        ("bounding_box_test/0000_c5s1_000151_01.jpg", 0, 5, "gallery"),
        ("bounding_box_test/0001_c2s1_000301_00.jpg.jpg", 1, 2, "gallery"),
        ("bounding_box_train/0002_c1s1_000451_03.jpg", 2, 1, "train"),
        ("bounding_box_train/0007_c3s3_077419_03.jpg", 7, 3, "train"),
        ("query/0001_c1s1_001051_00.jpg", 1, 1, "query"),
    ]
    assert [path for path, _ in dataset.ignored] == ["bounding_box_train/odd name.jpg"]
    assert len(dataset.records()) == 6
    assert len(dataset.ignored) == 1  # listing twice notes it once
    for record in dataset.records():
        assert dataset.read(record) == record.key.encode()


def test_market1501_of_another_layout_names_what_is_missing(market):
    with pytest.raises(UserError, match=rf"did you mean root {market}\?"):
        open_dataset("market1501", str(market.parent))
    (market / "query/0001_c1s1_001051_00.jpg").unlink()
    with pytest.raises(UserError, match="'query'"):
        open_dataset("market1501", str(market)).records()
    (market / "query").rmdir()
    with pytest.raises(UserError, match=f"{market} has no query"):
        open_dataset("market1501", str(market))


def test_relative_roots_are_read_from_anywhere(market, monkeypatch):
    monkeypatch.chdir(market.parent)
    dataset = open_dataset("market1501", market.name)
    record = dataset.records()[0]
    monkeypatch.chdir("/")
    assert dataset.read(record) == record.key.encode()


MSMT_LISTS = {
    "list_train.txt": "0000/0000_000_01_0303morning_0008_0.jpg 0\n0001/0001_005_14_0303noon_0101_1.jpg 1\n",
    "list_val.txt": "0000/0000_031_15_0303afternoon_0011_0_ex.jpg 0\n",
    "list_query.txt": "0000/0000_004_07_0303morning_0032_1.jpg 0\n\n",
    "list_gallery.txt": "0000/0000_008_02_0303morning_0032_1.jpg 0\nbroken line\n",
}


def make_msmt17(root: Path, train: str, test: str) -> Path:
    for name, lines in MSMT_LISTS.items():
        folder = train if name in ("list_train.txt", "list_val.txt") else test
        touch(root, *(f"{folder}/{line.split()[0]}" for line in lines.splitlines() if ".jpg" in line))
        (root / name).write_text(lines)
    return root


@pytest.mark.parametrize(
    ("version", "train", "test"), [("V1", "train", "test"), ("V2", "mask_train_v2", "mask_test_v2")]
)
def test_msmt17_versions(tmp_path, version, train, test):
    dataset = open_dataset("msmt17", str(make_msmt17(tmp_path, train, test)))
    assert dataset.version == version
    records = dataset.records()
    assert {(record.key, record.pid, record.camid, record.split) for record in records} == {
        (f"{train}/0000/0000_000_01_0303morning_0008_0.jpg", 0, 1, "train"),
        (f"{train}/0001/0001_005_14_0303noon_0101_1.jpg", 1, 14, "train"),
        (f"{train}/0000/0000_031_15_0303afternoon_0011_0_ex.jpg", 0, 15, "train"),
        (f"{test}/0000/0000_004_07_0303morning_0032_1.jpg", 0, 7, "query"),
        (f"{test}/0000/0000_008_02_0303morning_0032_1.jpg", 0, 2, "gallery"),
    }
    assert [record.key for record in records] == sorted(record.key for record in records)
    assert [path for path, _ in dataset.ignored] == ["list_gallery.txt: broken line"]
    for record in records:
        assert dataset.read(record) == record.key.encode()


def test_msmt17_with_both_versions_asks_which(tmp_path):
    make_msmt17(tmp_path, "train", "test")
    make_msmt17(tmp_path, "mask_train_v2", "mask_test_v2")
    with pytest.raises(UserError, match="V1 and V2"):
        open_dataset("msmt17", str(tmp_path))
    dataset = open_dataset("msmt17", str(tmp_path), version="V2")
    assert dataset.version == "V2"
    assert all(record.key.startswith("mask_") for record in dataset.records())
    with pytest.raises(UserError, match="V3"):
        open_dataset("msmt17", str(tmp_path), version="V3")


@pytest.mark.parametrize("missing", ["list_val.txt", "test"])
def test_msmt17_names_what_is_missing(tmp_path, missing):
    make_msmt17(tmp_path, "train", "test")
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"has no {missing}"):
        open_dataset("msmt17", str(tmp_path))


def test_msmt17_empty_split(tmp_path):
    make_msmt17(tmp_path, "train", "test")
    (tmp_path / "list_query.txt").write_text("")
    with pytest.raises(UserError, match="'query'"):
        open_dataset("msmt17", str(tmp_path)).records()


def test_a_file_that_a_list_names_but_is_absent_is_rejected_not_lost(tmp_path):
    dataset = open_dataset("msmt17", str(make_msmt17(tmp_path, "train", "test")))
    record = dataset.records()[0]
    Path(record.path).unlink()
    with pytest.raises(FileNotFoundError):
        dataset.read(record)


def test_msmt17_counts_what_no_list_names(tmp_path):
    touch(make_msmt17(tmp_path, "train", "test"), "train/0009/0009_000_01_x.jpg", "test/.a/1.jpg", "test/notes.txt")
    dataset = open_dataset("msmt17", str(tmp_path))
    assert len(dataset.records()) == 5
    assert dataset.left_out == {
        "image that no list names": (1, "train/0009/0009_000_01_x.jpg"),
        "file .txt": (1, "test/notes.txt"),
        "hidden": (1, "test/.a/1.jpg"),
    }


def test_msmt17_lists_do_not_lead_out_of_the_root(tmp_path):
    root = make_msmt17(tmp_path / "root", "train", "test")
    touch(tmp_path, "secret/0000_000_01_x.jpg")
    lines = ["../../secret/0000_000_01_x.jpg 0", f"{tmp_path}/secret/0000_000_01_x.jpg 0", "a\0/0000_000_01_x.jpg 0"]
    with (root / "list_train.txt").open("a") as file:
        file.write("\n".join(lines))
    dataset = open_dataset("msmt17", str(root))
    assert not [record for record in dataset.records() if "secret" in record.path]
    assert len(dataset.records()) == 5
    reasons = ("outside its root", "outside its root", "not a path")
    expected = [(f"list_train.txt: {line}", reason) for line, reason in zip(lines, reasons, strict=True)]
    assert dataset.ignored == [*expected, ("list_gallery.txt: broken line", "no line of file and identity")]


def test_folder_lists_all_images_folder_by_folder(tmp_path):
    touch(tmp_path, "b/2.JPG", "a/1.png", "a/deep/0.webp", "a/0.png", "c.bmp", "notes.txt", "a/list.csv", "ü 1.jpeg")
    dataset = open_dataset("folder", str(tmp_path))
    records = list(dataset.records())
    assert [record.key for record in records] == [
        "c.bmp",
        "ü 1.jpeg",
        "a/0.png",
        "a/1.png",
        "a/deep/0.webp",
        "b/2.JPG",
    ]
    assert [dataset.read(record) for record in records] == [record.key.encode() for record in records]
    assert {(record.pid, record.camid, record.split) for record in records} == {(-1, -1, "pool")}


def test_folder_is_listed_only_as_far_as_it_is_asked(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    entered = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: entered.append(Path(folder).name) or scandir(folder))
    records = open_dataset("folder", str(tmp_path)).records()
    assert next(iter(records)).key == "a/1.jpg"
    assert entered == [tmp_path.name, "a"]


def test_folder_as_workers_get_it_carries_no_listing(tmp_path):
    touch(tmp_path, "1.jpg")
    dataset = open_dataset("folder", str(tmp_path))
    (record,) = dataset.records()
    dataset.ignored = [("x.jpg", "name is not UTF-8")] * 10_000
    sent = pickle.dumps(dataset.read)
    assert len(sent) < 1000
    assert pickle.loads(sent)(record) == b"1.jpg"


def test_folder_follows_links_once(tmp_path):
    touch(tmp_path / "elsewhere", "1.jpg")
    touch(tmp_path / "root", "2.jpg")
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root")
    keys = [record.key for record in open_dataset("folder", str(tmp_path / "root")).records()]
    assert keys == ["2.jpg", "again/1.jpg"]


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_folder_that_cannot_be_listed_does_not_shrink_the_pool(tmp_path, monkeypatch, call):
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    whole = getattr(os, call)
    error: OSError

    def fail(folder, **options):
        if Path(folder) == tmp_path / "a":
            raise error
        return whole(folder, **options)

    monkeypatch.setattr(os, call, fail)
    dataset = open_dataset("folder", str(tmp_path))
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a"))
    assert [record.key for record in dataset.records()] == ["b/2.jpg"]
    assert dataset.ignored == [(str(tmp_path / "a"), "folder cannot be read")]
    error = OSError(errno.ESTALE, "Stale file handle", str(tmp_path / "a"))
    with pytest.raises(UserError, match=f"{tmp_path}/a cannot be listed: Stale file handle"):
        list(dataset.records())


def test_folder_notes_names_that_no_index_can_hold(tmp_path):
    touch(tmp_path, "1.jpg")
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):  # noqa: PTH123
        pass
    dataset = open_dataset("folder", str(tmp_path))
    assert [record.key for record in dataset.records()] == ["1.jpg"]
    assert dataset.ignored == [("\\udcff.jpg", "name is not UTF-8")]


def test_folder_without_images(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match=f"{tmp_path} has no image"):
        list(open_dataset("folder", str(tmp_path)).records())
    with pytest.raises(UserError, match="is a file"):
        open_dataset("folder", str(tmp_path / "notes.txt"))


def test_names_roots_and_options_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match="did you mean 'market1501'"):
        open_dataset("market", str(tmp_path))
    with pytest.raises(UserError, match=r"valid: .*folder.*market1501"):
        open_dataset("xyz", str(tmp_path))
    with pytest.raises(UserError, match="did you mean 'version'"):
        open_dataset("msmt17", str(tmp_path), versoin="V1")  # codespell:ignore versoin
    with pytest.raises(UserError, match="no option 'seed'"):
        open_dataset("folder", str(tmp_path), seed=1)
    for name in set(DATASETS) - {"synthetic", "combined"}:
        with pytest.raises(UserError, match="does not exist"):
            open_dataset(name, str(tmp_path / "absent"))
        with pytest.raises(UserError, match="needs a root"):
            open_dataset(name, None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("msmt17", {"version": ["V1"]}, r"msmt17: option version is \['V1'\]; give text$"),
        ("table", {"images": 5}, "table: option images is 5; give text$"),
        ("lmdb", {"keys": 5}, "lmdb: option keys is 5; give text$"),
        ("lmdb", {"keys": ["k.txt"]}, "lmdb: option keys is .*; give text$"),
        ("cuhk01", {"train": True}, "cuhk01: option train is True; give a whole number$"),
        ("cuhk03", {"kind": 5}, "cuhk03: option kind is 5; give text$"),
        ("combined", {"parts": "ab"}, "combined: option parts is 'ab'; give a list$"),
        ("synthetic", {"relevant": "x"}, "synthetic: option relevant is 'x'; give a number$"),
        ("pattern", {"folders": ["a"]}, "pattern: option folders is .*; give names with values$"),
    ],
)
def test_options_of_another_type_are_refused_in_one_line(tmp_path, name, options, message):
    root = None if name in ("combined", "synthetic") else str(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        open_dataset(name, root, **options)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(
    not RESPLIT.is_dir(), reason="the real images are absent: RAYREID_DATA names no folder with market1501-resplit"
)
def test_real_market1501_resplit(tmp_path):
    dataset = open_dataset("market1501", str(RESPLIT))
    records = dataset.records()
    assert Counter(record.split for record in records) == {"train": 4443, "query": 920, "gallery": 3293}
    assert len({record.pid for record in records if record.split == "train"}) == 251
    assert {record.camid for record in records} == set(range(1, 7))
    assert dataset.ignored == []
    some: list[Record] = records[::100]
    write_shard(tmp_path, 0, some, dataset.read)
    manifest = finish_store(tmp_path, 1, dataset.name, dataset.version)
    assert manifest["stored"] == len(some)
    assert ImageStore(tmp_path).image(0).shape == (128, 64, 3)
