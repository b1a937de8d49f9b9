import json
from pathlib import Path

import pytest
from PIL import Image

from rayreid.data.datasets.cuhk03 import CUHK03
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError

# As the converters write it: paths of their machine, train identities anew from 0, cameras from 0.
SPLITS = {
    "train": [["/home/x/cuhk03/images_detected/1_002_1_01.png", 1, 0], ["data/images_detected/1_001_2_06.png", 0, 1]],
    "query": [["C:\\data\\cuhk03\\images_detected\\5_010_1_02.png", 3, 0]],
    "gallery": [["images_detected/5_010_2_07.png", 3, 1]],
    "num_train_pids": 2,
}


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "cuhk03"
    for kind in ("detected", "labeled"):
        (root / f"images_{kind}").mkdir(parents=True)
        for name in ("1_001_2_06", "1_002_1_01", "5_010_1_02", "5_010_2_07"):
            (root / f"images_{kind}/{name}.png").write_bytes(f"{kind} {name}".encode())
        write(root, [SPLITS], kind)
    return root


def write(root: Path, content, kind: str = "detected") -> None:
    (root / f"splits_new_{kind}.json").write_text(json.dumps(content).replace("_detected", f"_{kind}"))


@pytest.mark.parametrize(("options", "kind"), [({}, "detected"), ({"kind": "labeled"}, "labeled")])
def test_new_protocol(root, options, kind):
    dataset = CUHK03(str(root), **options)
    assert dataset.version == kind
    records = dataset.records()
    assert [(record.key, record.pid, record.camid, record.split) for record in records] == [
        (f"images_{kind}/1_001_2_06.png", 0, 1, "train"),
        (f"images_{kind}/1_002_1_01.png", 1, 0, "train"),
        (f"images_{kind}/5_010_1_02.png", 3, 0, "query"),
        (f"images_{kind}/5_010_2_07.png", 3, 1, "gallery"),
    ]
    assert [dataset.read(record).decode() for record in records] == [
        f"{kind} {Path(record.key).stem}" for record in records
    ]
    assert dataset.ignored == []


def test_one_division_without_its_list(root):
    expected = CUHK03(str(root)).records()
    write(root, SPLITS)
    assert CUHK03(str(root)).records() == expected


def test_images_that_no_row_names_are_counted(root):
    (root / "images_detected/9_001_1_01.png").write_bytes(b"")
    dataset = CUHK03(str(root))
    assert len(dataset.records()) == 4
    assert dataset.left_out == {"image that no list names": (1, "images_detected/9_001_1_01.png")}


def test_rows_that_name_no_image_are_noted(root):
    bad = [["../../etc/passwd", 1, 0], ["1.png", -2, 0], ["1.png", 1, 99999], ["1.png", "1", 0], ["1.png", 1], "1.png"]
    write(root, [{**SPLITS, "gallery": SPLITS["gallery"] + bad}])
    dataset = CUHK03(str(root))
    assert len(dataset.records()) == 4
    assert len(dataset.records()) == 4
    assert [path for path, _ in dataset.ignored] == [f"splits_new_detected.json: {row}" for row in bad]


def test_an_image_that_is_absent_is_rejected_not_lost(root, tmp_path):
    dataset = CUHK03(str(root))
    write_shard(tmp_path / "store", 0, dataset.records(), dataset.read)
    with pytest.raises(UserError, match=r"no usable image .4 undecodable"):
        finish_store(tmp_path / "store", 1, dataset.name, dataset.version)
    (root / "images_detected/1_001_2_06.png").unlink()
    gone: Record = dataset.records()[0]
    with pytest.raises(OSError):
        dataset.read(gone)


def test_stored_and_read_back(root, tmp_path):
    for path in (root / "images_detected").iterdir():
        Image.new("RGB", (8, 16), (200, 0, 0)).save(path)
    dataset = CUHK03(str(root))
    write_shard(tmp_path / "store", 0, dataset.records(), dataset.read)
    manifest = finish_store(tmp_path / "store", 1, dataset.name, dataset.version)
    assert manifest["counts"] == {"gallery": 1, "query": 1, "train": 2}
    assert manifest["cameras"] == 2
    assert ImageStore(tmp_path / "store").image(0).shape == (16, 8, 3)


def test_other_layouts_name_what_is_missing(root):
    with pytest.raises(UserError, match=r"no kind 'labelled'; valid: detected, labeled"):
        CUHK03(str(root), kind="labelled")
    with pytest.raises(UserError, match=rf"did you mean root {root}\?"):
        CUHK03(str(root.parent))
    for content in ([SPLITS, SPLITS], [], {"train": [], "query": []}, {**SPLITS, "train": {}}, "x"):
        write(root, content)
        with pytest.raises(UserError, match=r"splits_new_detected.json is not one division"):
            CUHK03(str(root)).records()
    write(root, [{**SPLITS, "query": []}])
    with pytest.raises(UserError, match=r"no image of split 'query'"):
        CUHK03(str(root)).records()
    (root / "splits_new_detected.json").write_text("{")
    with pytest.raises(UserError, match=r"splits_new_detected.json cannot be read"):
        CUHK03(str(root)).records()
    (root / "splits_new_detected.json").unlink()
    with pytest.raises(UserError, match=r"has no splits_new_detected.json; it needs images_detected"):
        CUHK03(str(root))


def test_a_name_that_is_no_unicode_text_is_ignored_and_deep_json_is_refused(root):
    write(root, {**SPLITS, "gallery": [*SPLITS["gallery"], ["images_detected/\ud800.png", 3, 1]]})
    dataset = CUHK03(str(root))
    assert len(dataset.records()) == 4
    assert dataset.ignored == [("images_detected/\\ud800.png", "name is not UTF-8")]
    (root / "splits_new_detected.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"splits_new_detected\.json cannot be read: .*recursion"):
        dataset.records()
