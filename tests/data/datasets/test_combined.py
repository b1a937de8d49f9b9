import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from rayreid.data.datasets.combined import Combined
from rayreid.errors import UserError

MARKET = (
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0007_c3s3_077419_03.jpg",
    "bounding_box_train/odd.jpg",
    "query/0009_c2s1_001051_00.jpg",
    "bounding_box_test/-1_c6s1_000401_03.jpg",
    "bounding_box_test/0000_c5s1_000151_01.jpg",
    "bounding_box_test/0009_c4s1_000301_00.jpg",
)
TABLE = "path,pid,camid,split\n0.jpg,0,0,train\n1.jpg,-1,-1,pool\n2.jpg,4,1,query\n3.jpg,4,2,gallery\n"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    for number, part in enumerate(("market", "again")):
        for name in MARKET:
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / part / name).write_bytes(f"{number}-market1501/{name}".encode())
    (tmp_path / "own").mkdir()
    (tmp_path / "own/list.csv").write_text(TABLE)
    for number in range(4):
        (tmp_path / f"own/{number}.jpg").write_bytes(f"1-table/{number}.jpg".encode())
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path))
    return tmp_path


def parts(root: Path) -> list[dict]:
    return [
        {"dataset": "market1501", "root": str(root / "market")},
        {"dataset": "market1501", "root": "again", "options": {}},
    ]


def test_identities_and_cameras_of_parts_stay_apart(root):
    dataset = Combined(parts=parts(root))
    records = list(dataset.records())
    assert [(r.key.rpartition("/")[2].partition("_")[0], r.pid, r.camid) for r in records if r.split == "train"] == [
        ("0002", 2, 1),
        ("0007", 7, 3),
        ("0002", 10 + 2, 7 + 1),  # the highest identity, 9, is of query and gallery; the highest camera is 6
        ("0007", 10 + 7, 7 + 3),
    ]
    second = [(r.pid, r.camid, r.split) for r in records if r.key.startswith("1-market1501/bounding_box_test")]
    assert second == [(-1, 13, "gallery"), (10, 12, "gallery"), (19, 11, "gallery")]
    assert [dataset.read(record).decode() for record in records] == [record.key for record in records]
    assert len({record.key for record in records}) == 12
    assert dataset.version == "market1501 + market1501"
    assert dataset.ignored == [
        (f"{number}-market1501/bounding_box_train/odd.jpg", "name without identity and camera") for number in (0, 1)
    ]
    assert list(dataset.records()) == records
    assert len(dataset.ignored) == 2


@pytest.mark.parametrize(("test", "kept"), [(0, {"0"}), (1, {"1"}), (None, {"0", "1"})])
def test_one_part_s_query_and_gallery(root, test, kept):
    both = list(Combined(parts=parts(root)).records())
    records = list(Combined(parts=parts(root), test=test).records())
    assert {record.key[0] for record in records if record.split in ("query", "gallery")} == kept
    assert [record for record in records if record.split == "train"] == [r for r in both if r.split == "train"]
    assert set(records) <= set(both)  # the numbers do not depend on what is kept


def test_unknown_identities_stay_unknown_and_other_layouts_fit(root):
    dataset = Combined(parts=[parts(root)[0], {"dataset": "table", "root": "own/list.csv"}])
    records = [record for record in dataset.records() if record.key.startswith("1-")]
    assert [(record.key, record.pid, record.camid, record.split) for record in records] == [
        ("1-table/0.jpg", 10, 7, "train"),
        ("1-table/1.jpg", -1, -1, "pool"),
        ("1-table/2.jpg", 14, 8, "query"),
        ("1-table/3.jpg", 14, 9, "gallery"),
    ]
    assert [dataset.read(record).decode() for record in records] == [record.key for record in records]


def test_parts_that_are_read_by_their_keys_get_their_own(root):
    drawn = {"dataset": "synthetic", "options": {"part": "pool", "images": 4, "size": [32, 16]}}
    dataset = Combined(parts=[parts(root)[0], drawn])
    record = list(dataset.records())[-1]
    assert record.key == "1-synthetic/pool/0000003.jpg"
    assert dataset.read(record).startswith(b"\xff\xd8")
    assert dataset.version == "market1501 + synthetic 3"


def test_workers_get_it_small(root):
    dataset = Combined(parts=parts(root))
    records = list(dataset.records())
    dataset.ignored *= 1000
    sent = pickle.dumps(dataset.read)
    assert len(sent) < 2000
    assert pickle.loads(sent)(records[-1]).decode() == records[-1].key
    for key in ("2-market1501/x.jpg", "x.jpg"):
        with pytest.raises(OSError, match=r"no part"):
            dataset.read(replace(records[0], key=key))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the option parts"),
        ({"parts": [{"dataset": "market1501", "root": "market"}]}, "two or more"),
        ({"parts": ["market1501", "msmt17"]}, "part 0 is 'market1501'; give {dataset, root, options}"),
        ({"parts": [{"root": "market"}] * 2}, "part 0 is"),
        ({"parts": [{"dataset": "market1501", "folder": "market"}] * 2}, "part 0 has no field 'folder'"),
        ({"parts": [{"dataset": "market", "root": "market"}] * 2}, "did you mean 'market1501'"),
        ({"parts": [{"dataset": "market1501", "root": "absent"}] * 2}, "absent does not exist"),
        ({"parts": [{"dataset": "market1501", "root": "market", "options": [1]}] * 2}, "options are"),
        (
            {"parts": [{"dataset": "market1501", "root": "market", "options": {1: 2}}] * 2},
            "part 0: .* the name 1, which",
        ),
        ({"parts": [{"dataset": "market1501", "root": "market"}] * 2, "test": 2}, "test is 2; .* 0 to 1"),
        ({"parts": [{"dataset": "market1501", "root": "market"}] * 2, "test": True}, "test is True"),
        ({"parts": [{"dataset": "market1501", "root": "market"}, {"dataset": "store"}]}, "part 1 is a store, .*; give"),
        ({"root": "market", "parts": []}, "no root of its own"),
    ],
)
def test_wrong_descriptions(root, options, message):
    with pytest.raises(UserError, match=message):
        Combined(**options)


def test_the_cameras_of_one_part_may_be_ignored(root):
    first, second = parts(root)
    found = list(Combined(parts=[{**first, "cameras": "ignore"}, second]).records())
    assert {record.camid for record in found if record.key.startswith("0-")} == {-1}
    assert -1 not in {record.camid for record in found if record.key.startswith("1-")}
    with pytest.raises(UserError, match=r"part 1: cameras is 'none'; valid: use, ignore"):
        Combined(parts=[first, {**second, "cameras": "none"}])
