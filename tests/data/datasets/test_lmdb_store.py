import json
import os
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest

from rayreid.data.datasets import lmdb_store
from rayreid.data.datasets.keylist import read_keys
from rayreid.data.datasets.lmdb_store import LmdbStore
from rayreid.data.store.shards import MissingImageError
from rayreid.data.store.store import Record
from rayreid.errors import UserError

IMAGES = {f"00_00_0000_{number:08d}": f"image {number}".encode() for number in range(5)}


def write_lmdb(path: Path, images: dict, subdir: bool = True) -> Path:
    environment = lmdb.open(str(path), map_size=2**24, subdir=subdir)
    with environment.begin(write=True) as transaction:
        for key, data in images.items():
            transaction.put(key if isinstance(key, bytes) else key.encode(), data)
    environment.close()
    return path


def write_pickle(path: Path, content, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("subdir", [True, False])
def test_all_keys_without_a_list(tmp_path, subdir):
    root = write_lmdb(tmp_path / "lmdb", {**IMAGES, "__len__": b"5", "__keys__": b"..."}, subdir)
    dataset = LmdbStore(str(root))
    records = list(dataset.records())
    assert records == [Record(key, -1, -1, "pool", key) for key in sorted(IMAGES)]
    assert [dataset.read(record) for record in records] == [IMAGES[record.key] for record in records]


@pytest.mark.parametrize("place", ["inside", "beside"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_published_layout_takes_its_list_in_its_order(tmp_path, place, protocol):
    root = write_lmdb(tmp_path / "lmdb", IMAGES)
    chosen = sorted(IMAGES, reverse=True)[:3]
    write_pickle((root if place == "inside" else tmp_path) / "keys.pkl", chosen, protocol)
    assert [record.key for record in LmdbStore(str(root)).records()] == chosen


def test_named_list_goes_before_the_usual_places(tmp_path):
    root = write_lmdb(tmp_path / "lmdb", IMAGES)
    first, second, third, *_ = IMAGES
    write_pickle(tmp_path / "keys.pkl", [first])
    (tmp_path / "some.txt").write_text(f"{third}\n\n{second}\n")
    (root / "other.json").write_text(json.dumps([second]))
    assert [record.key for record in LmdbStore(str(root)).records()] == [first]
    assert [record.key for record in LmdbStore(str(root), keys="some.txt").records()] == [third, second]
    assert [record.key for record in LmdbStore(str(root), keys="other.json").records()] == [second]
    assert [record.key for record in LmdbStore(str(root), keys=str(tmp_path / "some.txt")).records()] == [third, second]
    with pytest.raises(UserError, match=r"no list of keys absent.txt"):
        LmdbStore(str(root), keys="absent.txt")


def test_a_key_that_the_database_lacks_is_unreadable_not_fatal(tmp_path):
    root = write_lmdb(tmp_path / "lmdb", IMAGES)
    (tmp_path / "keys.txt").write_text(f"absent\n{'x' * 600}\n{next(iter(IMAGES))}\n")
    dataset = LmdbStore(str(root))
    absent, too_long, present = dataset.records()
    for record in (absent, too_long):
        with pytest.raises(MissingImageError, match=rf"has no key '{record.key}'"):
            dataset.read(record)
    assert dataset.read(present) == b"image 0"


def test_a_database_that_fails_is_no_missing_image(tmp_path, monkeypatch):
    class Failing:
        def begin(self):
            raise lmdb.DiskError("Input/output error")

    dataset = LmdbStore(str(write_lmdb(tmp_path / "lmdb", IMAGES)))
    monkeypatch.setattr(lmdb_store, "_environment", lambda _: Failing())
    with pytest.raises(OSError, match=r"Input/output error") as error:
        dataset.read(Record("a", -1, -1, "pool", "a"))
    assert not isinstance(error.value, MissingImageError)


def test_keys_that_no_index_can_hold_are_noted(tmp_path):
    dataset = LmdbStore(str(write_lmdb(tmp_path / "lmdb", {b"a": b"1", b"\xff": b"2"})))
    assert [record.key for record in dataset.records()] == ["a"]
    assert dataset.ignored == [("\\udcff", "name is not UTF-8")]


def test_workers_get_it_small_and_closed_and_open_it_once(tmp_path):
    root = write_lmdb(tmp_path / "lmdb", IMAGES)
    dataset = LmdbStore(str(root))
    record = next(iter(dataset.records()))
    sent = pickle.dumps(dataset.read)
    assert len(sent) < 1000
    (tmp_path / "link").symlink_to(root)
    for read in (pickle.loads(sent), pickle.loads(sent), LmdbStore(str(tmp_path / "link")).read):
        assert read(record) == b"image 0"


def test_of_another_layout_names_what_is_missing(tmp_path):
    root = write_lmdb(tmp_path / "lmdb", IMAGES)
    with pytest.raises(UserError, match=rf"did you mean root {root}\?"):
        LmdbStore(str(tmp_path))
    with pytest.raises(UserError, match=r"needs a root"):
        LmdbStore(None)
    with pytest.raises(UserError, match=r"does not exist"):
        LmdbStore(str(tmp_path / "absent"))
    (tmp_path / "file").write_bytes(b"x" * 8192)
    with pytest.raises(UserError, match=r"is damaged or no LMDB \(InvalidError: .*\); copy it again"):
        LmdbStore(str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"has no image"):
        list(LmdbStore(str(write_lmdb(tmp_path / "empty", {}))).records())


def test_half_a_database_is_refused_before_reading_it_kills_the_process(tmp_path):
    root = write_lmdb(tmp_path / "lmdb", {f"{number:04d}": bytes(8000) for number in range(200)})
    file = root / "data.mdb"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError, match=r"is cut off"):
        LmdbStore(str(root))


@pytest.mark.parametrize("subdir", [True, False])
def test_a_database_whose_keys_are_out_of_order_is_refused(tmp_path, subdir):
    """As damaged pages leave it; a circle of pages repeats its keys, too, and would never end."""
    root = write_lmdb(tmp_path / "lmdb", {f"{number:04d}": b"x" for number in range(9)}, subdir=subdir)
    file = root / "data.mdb" if subdir else root
    file.write_bytes(file.read_bytes().replace(b"0003", b"0000"))
    with pytest.raises(UserError, match=r"is damaged or no LMDB \(key b'0000' follows b'0002'\); copy it again"):
        LmdbStore(str(root))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "content",
    [
        {"names": ["a"], "pids": [1]},
        {"keys": ["a", 1]},
        {"keys": "a"},
        {"a": {"keys": ["b"]}},
        ["a", 1],
        [["a"]],
        ("a",),
        [b"a"],
        "a",
        ["a", Bomb()],
        {"a"},
        [None],
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_of_anything_else_are_refused_unopened(tmp_path, monkeypatch, content, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"keys.pkl.*something else than a list of strings"):
        list(read_keys(write_pickle(tmp_path / "keys.pkl", content, protocol)))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("number", [0, 1, 2, 1000, 1001, 2500])  # pickle writes lists in batches of a thousand
@pytest.mark.parametrize("labels", ["none", "before", "list", "array", "bomb"])
def test_the_keys_of_a_pickled_dict_are_read_and_its_labels_are_not(tmp_path, monkeypatch, protocol, number, labels):
    monkeypatch.chdir(tmp_path)
    keys = [f"{index:05d}_ü" for index in range(number)]
    pids = {
        "none": {},
        "before": {"vids": list(range(number)), "names": ["x", "keys"]},
        "list": {"pids": list(range(number)), "more": (None, 2.5, True, b"x")},
        "array": {"pids": np.arange(number), "vids": np.array(["a", "keys"], object)},
        "bomb": {"pids": [Bomb()]},
    }[labels]
    content = {**pids, "keys": keys} if labels == "before" else {"keys": keys, **pids}
    assert list(read_keys(write_pickle(tmp_path / "keys.pkl", content, protocol))) == keys
    assert not (tmp_path / "exploded").exists()


def test_the_keys_of_a_json_object_are_read(tmp_path):
    for content in ({"keys": ["a", "b"], "pids": [1, 2]}, {"a": "a man", "b": ["a woman"]}, ["a", "b"]):
        (tmp_path / "keys.json").write_text(json.dumps(content))
        assert list(read_keys(tmp_path / "keys.json")) == ["a", "b"]


def test_lists_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"there is no such list"):
        list(read_keys(tmp_path / "keys.txt"))
    with pytest.raises(UserError, match=r"ends in .txt, .json, .pkl, not '.csv'"):
        list(read_keys(tmp_path / "keys.csv"))
    for name, content in {
        "cut.pkl": pickle.dumps(["a" * 100])[:50],
        "keys.txt": b"\xff\xfe",
        "a.json": b"{",
        "b.json": b"[1]",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: the list of keys cannot be read"):
            list(read_keys(tmp_path / name))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_repeats_its_entries_as_a_text_does(tmp_path, protocol):
    keys = [f"ü{number}" for number in range(300)]
    keys += [keys[0], keys[299], keys[5], keys[5]]  # the same objects: the pickle refers back to them
    (tmp_path / "keys.txt").write_text("\n".join(keys))
    assert list(read_keys(write_pickle(tmp_path / "keys.pkl", keys, protocol))) == keys
    assert list(read_keys(tmp_path / "keys.txt")) == keys


def test_pickles_of_python_2_count_from_1(tmp_path):
    (tmp_path / "keys.pkl").write_bytes(b"(lp1\nS'a'\np2\naS'b'\np3\nag2\na.")
    assert list(read_keys(tmp_path / "keys.pkl")) == ["a", "b", "a"]


@pytest.mark.parametrize(
    "content",
    [
        b"(lp0\nS'a'\np1\nag0\na.",  # the list within itself
        b"(lp0\nS'a'\np1\nag2\na.",
        b"(lp0\nS'a'\np1\nag-1\na.",
        b"(lp0\nS'a'\np7\nag7\na.",
    ],
)
def test_pickles_that_refer_to_no_string_are_refused(tmp_path, content):
    (tmp_path / "keys.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"keys.pkl.*refused"):
        list(read_keys(tmp_path / "keys.pkl"))


@pytest.mark.parametrize(
    "spell",
    ["{}.jpg", "images/{}.jpg", "LUP\\images\\{}.JPG", "images/{}"],
)
def test_keys_that_the_list_spells_differently_are_found_and_counted(tmp_path, spell):
    root = write_lmdb(tmp_path / "lmdb", IMAGES)
    first, second, third, *_ = IMAGES
    write_pickle(tmp_path / "CFS_list.pkl", [spell.format(third), first, spell.format(second), "absent.jpg"])
    dataset = LmdbStore(str(root), keys="CFS_list.pkl")
    assert [record.key for record in dataset.records()] == [third, first, second, "absent.jpg"]
    assert dataset.notes == ["2 keys of CFS_list.pkl are spelt differently in the database"]
    assert [dataset.read(record) for record in list(dataset.records())[:3]] == [
        IMAGES[k] for k in (third, first, second)
    ]
    assert len(dataset.notes) == 1  # listing twice notes it once


def test_entries_that_differ_only_in_their_folders_are_ambiguous(tmp_path):
    root = write_lmdb(tmp_path / "lmdb", {"a": b"1", "b": b"2"})
    (tmp_path / "keys.txt").write_text("x/a.jpg\ny\\a.jpg\nx/b.jpg\nx/b.jpg\n")
    dataset = LmdbStore(str(root))
    assert [record.key for record in dataset.records()] == ["a", "b", "b"]  # a repetition is a duplicate key
    assert dataset.ignored == [("y\\a.jpg", "ambiguous: an earlier entry with other folders is a, too")]
    assert dataset.notes == ["3 keys of keys.txt are spelt differently in the database"]


def test_keys_that_lack_the_suffix_of_the_database_are_found(tmp_path):
    root = write_lmdb(tmp_path / "lmdb", {f"{key}.jpg": image for key, image in IMAGES.items()})
    (tmp_path / "keys.txt").write_text("\n".join(IMAGES))
    dataset = LmdbStore(str(root))
    assert [record.key for record in dataset.records()] == [f"{key}.jpg" for key in IMAGES]
    assert dataset.notes == ["5 keys of keys.txt are spelt differently in the database"]


def test_a_key_that_is_no_unicode_text_is_ignored_and_deep_json_is_refused(tmp_path):
    root = write_lmdb(tmp_path / "lmdb", IMAGES)
    first = next(iter(IMAGES))
    (tmp_path / "keys.json").write_text(json.dumps(["\ud800.jpg", first]))
    dataset = LmdbStore(str(root))
    assert [record.key for record in dataset.records()] == [first]
    assert dataset.ignored == [("\\ud800.jpg", "name is not UTF-8")]
    (tmp_path / "keys.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"keys\.json: the list of keys cannot be read: .*recursion"):
        list(dataset.records())


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("rayreid.data.datasets.lmdb_store.find_spec", lambda name: None)
    (tmp_path / "data.mdb").touch()
    with pytest.raises(UserError, match=r"dataset lmdb needs the extra rayreid\[lmdb\]: pip install lmdb$"):
        LmdbStore(tmp_path)
