import os
import pickle
import shutil
from pathlib import Path

import pytest

from rayreid.config import Source
from rayreid.data.datasets import open_dataset, open_source
from rayreid.data.datasets.named_files import NO_LABELS
from rayreid.data.datasets.pattern import compile_pattern
from rayreid.data.store.shards import MissingImageError
from rayreid.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def listed(name: str, root: Path, **options) -> list[tuple]:
    dataset = open_dataset(name, str(root), **options)
    records = dataset.records()
    read = pickle.loads(pickle.dumps(dataset.read))
    assert [read(record).decode() for record in records] == [record.key for record in records]
    return [(record.key, record.pid, record.camid, record.split) for record in records]


def refused(name: str, root: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(name, str(root), **options).records()
    assert "\n" not in str(caught.value)
    return str(caught.value)


MARKET = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "bounding_box_test/0001_c2s1_000301_00.jpg",
]


@pytest.mark.parametrize(
    "pattern",
    [
        "{pid:d}_c{camid:d}*",
        "{pid:4d}_c{camid:d}s?_*",
        "{pid}_c{camid:d}s*.jpg",
        r"(?P<pid>\d+)_c(?P<camid>\d)s\d_.*",
    ],
)
def test_a_pattern_reads_markets_names_as_market1501_does(tmp_path, pattern):
    touch(tmp_path, *MARKET)
    assert listed("pattern", tmp_path, pattern=pattern) == listed("market1501", tmp_path)


def test_folders_are_splits_and_the_camera_is_optional(tmp_path):
    touch(tmp_path, "a/one/7-x.jpg", "b/7-y.png", "c/d/8-z.jpg", "e/9-w.jpg", "a/notes.txt")
    folders = {"a": "train", "b": "query", "c/d": "gallery"}
    assert listed("pattern", tmp_path, pattern="{pid:d}-*", folders=folders) == [
        ("a/one/7-x.jpg", 7, -1, "train"),
        ("b/7-y.png", 7, -1, "query"),
        ("c/d/8-z.jpg", 8, -1, "gallery"),
    ]


def test_with_a_slash_the_pattern_is_that_of_the_path(tmp_path):
    touch(tmp_path, "train/0003/cam2/1.jpg", "train/0003/cam1/2.jpg", "train/0004/3.jpg")
    dataset = open_dataset("pattern", str(tmp_path), pattern="{pid:d}/cam{camid:d}/*", folders={"train": "train"})
    assert [(record.pid, record.camid) for record in dataset.records()] == [(3, 1), (3, 2)]
    assert dataset.ignored == [("train/0004/3.jpg", "name without identity and camera")]


def test_names_of_identities_and_cameras_are_numbered_in_their_order(tmp_path):
    touch(tmp_path, "train/bob_north.jpg", "query/anna_south.jpg", "gallery/anna_north.jpg", "gallery/-1_north.jpg")
    folders = {"train": "train", "query": "query", "gallery": "gallery"}
    assert listed("pattern", tmp_path, pattern="{pid}_{camid}", folders=folders) == [
        ("gallery/-1_north.jpg", -1, 0, "gallery"),
        ("gallery/anna_north.jpg", 0, 0, "gallery"),
        ("query/anna_south.jpg", 0, 1, "query"),
        ("train/bob_north.jpg", 1, 0, "train"),
    ]


@pytest.mark.parametrize("root", [".", "./", "", "./."])
@pytest.mark.parametrize("inner", ["query", "./query", "query//", "query/."])
def test_the_root_may_be_a_split_and_another_split_lie_in_it(tmp_path, root, inner):
    touch(tmp_path, "1_a.jpg", "more/2_a.jpg", "query/1_b.jpg")
    (tmp_path / "again").symlink_to(tmp_path)
    found = listed("pattern", tmp_path, pattern="{pid:d}_*", folders={root: "train", inner: "query"})
    assert found == [
        ("1_a.jpg", 1, -1, "train"),
        ("more/2_a.jpg", 2, -1, "train"),
        ("query/1_b.jpg", 1, -1, "query"),
    ]


def test_numbers_beyond_the_index_are_ignored(tmp_path):
    touch(tmp_path, "a/1_c1_.jpg", f"a/{2**31}_c1_.jpg", f"a/1_c{2**15}_.jpg", "a/-2_c1_.jpg")
    dataset = open_dataset("pattern", str(tmp_path), pattern="{pid:d}_c{camid:d}*", folders={"a": "train"})
    assert len(dataset.records()) == 1
    assert {reason for _, reason in dataset.ignored} == {"identity or camera out of range"}
    assert len(dataset.ignored) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the option pattern"),
        ({"pattern": 3}, "option pattern is 3; give text"),
        ({"pattern": "{camid:d}_*"}, "has no field pid"),
        ({"pattern": "{pid:d}_{cam:d}"}, "has the field 'cam'; the fields are pid, camid"),
        ({"pattern": "{pid:d}_{pid:d}"}, "no valid pattern"),
        ({"pattern": r"(?P<pid>\d+"}, "no valid pattern"),
        ({"pattern": "{pid:99999999999d}"}, "no valid pattern"),
        ({"pattern": "{pid}", "folders": ["a"]}, "option folders is ['a']; give names with values"),
        ({"pattern": "{pid}", "folders": {}}, "folders is no mapping"),
        ({"pattern": "{pid}", "folders": {"a": "test"}}, "one of train, query, gallery, pool"),
        ({"pattern": "{pid}", "folders": {"../a": "train"}}, "a folder below the root"),
        ({"pattern": "{pid}", "folders": {"a": "train"}}, "has no a; it needs a"),
        ({"pattern": "{pid}", "folders": {"a": "train", "a/": "query"}}, "folders has 'a' twice"),
        ({"pattern": "{pid}", "folders": {"a/b": "train", "./a//b": "train"}}, "folders has 'a/b' twice"),
    ],
)
def test_options_that_say_nothing_are_refused(tmp_path, options, message):
    assert message in refused("pattern", tmp_path, **options)


@pytest.mark.parametrize("pid", [r"(?P<pid>\d+)?", r"(?P<pid>\d*)"])
def test_a_name_without_its_optional_identity_is_ignored(tmp_path, pid):
    touch(tmp_path, "a/1_c1.jpg", "a/_c2.jpg", "a/2_.jpg")
    pattern = rf"{pid}_(?:c(?P<camid>\d))?"
    dataset = open_dataset("pattern", str(tmp_path), pattern=pattern, folders={"a": "train"})
    assert [(record.key, record.pid, record.camid) for record in dataset.records()] == [
        ("a/1_c1.jpg", 1, 1),
        ("a/2_.jpg", 2, -1),
    ]
    assert dataset.ignored == [("a/_c2.jpg", NO_LABELS)]


def test_characters_of_regular_expressions_stand_for_themselves_in_a_template():
    assert compile_pattern("({pid:d})+.{camid:d}").fullmatch("(3)+.4").groupdict() == {"pid": "3", "camid": "4"}


def test_veri776(tmp_path):
    touch(tmp_path, *(f"{folder}/0002_c002_00030600_0.jpg" for folder in ("image_train", "image_query", "image_test")))
    assert [row[1:] for row in listed("veri776", tmp_path)] == [
        (2, 2, "query"),
        (2, 2, "gallery"),
        (2, 2, "train"),
    ]


def test_dukemtmc(tmp_path):
    touch(tmp_path, *(f"{folder.split('/')[0]}/0001_c2_f0046182.jpg" for folder in MARKET))
    assert {row[1:3] for row in listed("dukemtmc", tmp_path)} == {(1, 2)}


def test_cuhk01_divides_by_identity_and_camera(tmp_path):
    touch(tmp_path, *(f"campus/{pid:04d}{image:03d}.png" for pid in (485, 486) for image in (1, 2, 3, 4)))
    assert [row[1:] for row in listed("cuhk01", tmp_path)] == [
        (485, 1, "train"),
        (485, 1, "train"),
        (485, 2, "train"),
        (485, 2, "train"),
        (486, 1, "query"),
        (486, 1, "query"),
        (486, 2, "gallery"),
        (486, 2, "gallery"),
    ]
    assert {row[3] for row in listed("cuhk01", tmp_path, train=871)} == {"train"}
    assert "train is 'all'" in refused("cuhk01", tmp_path, train="all")


def test_occluded_reid_has_query_and_gallery(tmp_path):
    touch(tmp_path, "occluded_body_images/001/001_01.tif", "whole_body_images/001/001_01.tif")
    assert [row[1:] for row in listed("occluded", tmp_path)] == [(1, -1, "query"), (1, -1, "gallery")]


def test_cameras_may_be_ignored(tmp_path):
    touch(tmp_path, *MARKET, "query/odd.jpg")
    dataset = open_source(Source(dataset="market1501", root=str(tmp_path), cameras="ignore"))
    records = list(dataset.records())
    assert [(record.pid, record.camid) for record in records] == [(1, -1), (2, -1), (1, -1)]
    read = pickle.loads(pickle.dumps(dataset.read))
    assert [read(record).decode() for record in records] == [record.key for record in records]
    assert dataset.ignored == [("query/odd.jpg", "name without identity and camera")]
    used = Source(dataset="market1501", root="a", cameras="use")
    assert used.identity() == Source(dataset="market1501", root="a").identity()
    assert used.identity() != Source(dataset="market1501", root="a", cameras="ignore").identity()


def test_the_cameras_of_an_existing_store_stay(tmp_path):
    (tmp_path / "manifest.json").write_text(
        '{"format": 1, "dataset": "market1501", "version": "", "fingerprint": "", "read": 0, "stored": 0, '
        '"rejected": {}, "counts": {}, "identities": {}, "cameras": 0, "shards": []}'
    )
    with pytest.raises(UserError, match="set cameras: ignore where it is made"):
        open_source(Source(dataset="store", root=str(tmp_path), cameras="ignore"))


# Near-misses


def test_names_in_capitals_are_counted_and_explained(tmp_path):
    touch(tmp_path, *MARKET[1:], *(f"bounding_box_train/{n:04d}_C1S1_000451_03.jpg" for n in range(24)))
    assert refused("market1501", tmp_path).endswith(
        "has no image of split 'train' (24 ignored, first bounding_box_train/0000_C1S1_000451_03.jpg: "
        "name without identity and camera: its letters are capitals)"
    )


def test_identity_folders_are_counted_and_lead_to_pattern(tmp_path):
    touch(tmp_path, *MARKET[1:], "bounding_box_train/0002/0002_c1s1_000451_03.jpg", "query/notes.txt")
    message = refused("market1501", tmp_path)
    assert "(1 ignored, first bounding_box_train/0002/0002_c1s1_000451_03.jpg: in a sub-folder" in message
    assert "pattern" in message
    assert len(listed("pattern", tmp_path, pattern="{pid:d}_c{camid:d}*")) == 3


def test_files_that_are_no_images_are_counted_too(tmp_path):
    touch(tmp_path, *MARKET[1:], "bounding_box_train/.DS_Store", "bounding_box_train/a.txt")
    message = refused("market1501", tmp_path)
    assert (
        "(1 left out, first bounding_box_train/.DS_Store: hidden; "
        "1 left out, first bounding_box_train/a.txt: file .txt)" in message
    )
    shutil.rmtree(tmp_path / "bounding_box_train")
    (tmp_path / "bounding_box_train").mkdir()
    assert "split 'train' (there is nothing in bounding_box_train/)" in refused("market1501", tmp_path)


def test_a_pipe_named_like_an_image_does_not_block(tmp_path):
    touch(tmp_path, *MARKET)
    os.mkfifo(tmp_path / "query/0002_c1s1_000001_00.jpg")
    dataset = open_dataset("market1501", str(tmp_path))
    (pipe,) = [record for record in dataset.records() if record.pid == 2 and record.split == "query"]
    with pytest.raises(MissingImageError, match="is no plain file"):
        dataset.read(pipe)


def test_images_in_hidden_folders_and_those_of_systems_are_counted_and_not_read(tmp_path):
    hidden = [f"query/{folder}/0003_c1s1_000001_00.jpg" for folder in (".thumbs", "a/.b", "@eaDir", "__MACOSX")]
    touch(tmp_path, *MARKET, *hidden, "query/__MACOSX/._0003_c1s1_000001_00.jpg", "query/@eaDirs/4_c1_a.jpg")
    dataset = open_dataset("pattern", str(tmp_path), pattern="{pid:d}_c{camid:d}*")
    assert {record.key for record in dataset.records()} == {*MARKET, "query/@eaDirs/4_c1_a.jpg"}
    assert {reason: count for reason, (count, _) in dataset.left_out.items()} == {"hidden": 4, "AppleDouble file": 1}
    assert {file.name for file in dataset.sources()} == {*MARKET, "query/@eaDirs/4_c1_a.jpg"}


@pytest.mark.parametrize("inner", ["Market-1501", "Market-1501/Market-1501-v15.09.15", "a/b/c"])
def test_a_root_that_is_too_high_or_too_low_names_the_right_one(tmp_path, inner):
    touch(tmp_path / inner, *MARKET)
    touch(tmp_path / "__MACOSX" / inner, *MARKET)
    assert f"did you mean root {tmp_path / inner}?" in refused("market1501", tmp_path)
    assert f"did you mean root {tmp_path / inner}?" in refused("market1501", tmp_path / inner / "query")


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_both_editions_of_msmt17_are_found_below_the_root(tmp_path, folders):
    inner = tmp_path / "MSMT17" / "MSMT17"
    touch(inner, *(f"list_{name}.txt" for name in ("train", "val", "query", "gallery")))
    for folder in folders:
        (inner / folder).mkdir()
    assert f"did you mean root {inner}?" in refused("msmt17", tmp_path)


def test_the_layout_of_another_dataset_is_named(tmp_path):
    touch(tmp_path / "market", *MARKET)
    assert "it has the layout of market1501; set dataset: market1501" in refused("msmt17", tmp_path / "market")
    touch(tmp_path / "veri", *(f"{folder}/x" for folder in ("image_train", "image_query", "image_test")))
    assert "set dataset: veri776" in refused("market1501", tmp_path / "veri")


def test_names_of_extra_detections_and_doubled_suffixes_are_read(tmp_path):
    names = ["bounding_box_train/0000_c1_0303morning_0008_0_ex.jpg", "query/0001_c1s1_001051_00.jpg.jpg"]
    touch(tmp_path, *names, MARKET[2])
    assert len(listed("market1501", tmp_path)) == 3


def test_msmt17_lists_of_other_unpackers_are_read(tmp_path):
    image = "0000/0000_031_15_0303afternoon_0011_0_ex.jpg"
    touch(tmp_path, f"train/{image}", f"test/{image}")
    lines = {"train": f"{image}\t0", "val": f"train/{image} 0", "query": image.replace("/", "\\") + " 0"}
    for name, line in {**lines, "gallery": f"./{image}  0"}.items():
        (tmp_path / f"list_{name}").write_text(f"\ufeff{line}\r\n")
    dataset = open_dataset("msmt17", str(tmp_path))
    assert [(record.key, record.pid, record.camid, record.split) for record in dataset.records()] == [
        (f"test/{image}", 0, 15, "query"),
        (f"test/{image}", 0, 15, "gallery"),
        (f"train/{image}", 0, 15, "train"),
        (f"train/{image}", 0, 15, "train"),
    ]
    (tmp_path / "list_query").write_text(f"{image}\n{image},0\n")
    assert "split 'query' (2 ignored, first list_query: 0000/0000_031" in refused("msmt17", tmp_path)
    (tmp_path / "list_query").unlink()
    assert "has no list_query.txt; it needs" in refused("msmt17", tmp_path)


def test_cuhk03_explains_the_mat_file_and_identities_that_are_text(tmp_path):
    touch(tmp_path, "cuhk-03.mat")
    assert "has the MAT file cuhk-03.mat" in refused("cuhk03", tmp_path)
    (tmp_path / "images_detected").mkdir()
    rows = '{"train": [["1.png", "0001", 0]], "query": [["2.png", 1, "0"]], "gallery": [["3.png", 1, 0]]}'
    (tmp_path / "splits_new_detected.json").write_text(rows)
    message = refused("cuhk03", tmp_path)
    assert "split 'train' (2 ignored, first splits_new_detected.json: ['1.png', '0001', 0]: " in message
    assert "identity or camera is text; write it as a number" in message
