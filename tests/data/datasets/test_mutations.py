"""Names and tables with random faults: all that is read is listed, ignored or left out, and no fault is a traceback."""

import csv
import io
import os
import pickle
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fuzzing import flipped, fuzzed
from rayreid.config import Source
from rayreid.config.yaml_text import parse_yaml
from rayreid.data.datasets import open_dataset
from rayreid.data.store.store import finish_store, write_shard
from rayreid.errors import UserError
from rayreid.selection.filelist import match_entries, read_list
from rayreid.selection.provenance import provenance_of

rounds = fuzzed(20, 80)

CHARACTERS = [
    *"aC_-0199.,;:*?[](){}'\"\\ \t\n\r%#~&|",
    "ü",
    "名",
    "\u0000",
    "\u200b",
    "\ufeff",
    "é",
    "-1",
    "../",
    "NaN",
]


def mutated(text: str, rng: random.Random) -> str:
    """The text with up to three random edits."""
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text) + 1)
        edit = rng.randrange(7)
        if edit == 0:
            text = text[:place] + rng.choice(CHARACTERS) + text[place:]
        elif edit == 1:
            text = text[:place] + text[place + rng.randint(1, 4) :]
        elif edit == 2:
            text = text[:place] + rng.choice(CHARACTERS) + text[place + 1 :]
        elif edit == 3:
            text = rng.choice([text.upper(), text.swapcase(), text.title()])
        elif edit == 4:
            text = text + rng.choice([".jpg", ".JPEG", ".txt", "~", "", ".tar.gz", " "])
        elif edit == 5:
            text = rng.choice(["", ".", "._", "-", " ", "sub/", "/", "C:\\"]) + text
        else:
            text = text.replace("_", rng.choice(["", "__", "-"]))
    return text


def checked(action: Callable[[], Any]) -> Any:
    """What the action returns; None if it is refused, which takes one line."""
    try:
        return action()
    except UserError as error:
        assert "\n" not in str(error) and "\r" not in str(error)
        return None


def account(name: str, root: Path, **options) -> int | None:
    """How many files or rows the dataset gives, ignores or leaves out; None if it is refused."""

    def list_all() -> int:
        dataset = open_dataset(name, str(root), **options)
        records = list(dataset.records())
        for record in records:
            record.key.encode()
            assert -1 <= record.pid < 2**31 and -1 <= record.camid < 2**15
            assert record.split in ("train", "query", "gallery", "pool")
        return len(records) + len(dataset.ignored) + sum(count for count, _ in dataset.left_out.values())

    return checked(list_all)


# Trees

MARKET = [f"{pid:04d}_c{camid}s1_{shot:06d}_00.jpg" for pid in (2, 7) for camid in (1, 2) for shot in (1, 2)]
TREES = {
    "market1501": (("bounding_box_train", "query", "bounding_box_test"), MARKET, {}),
    "dukemtmc": (("bounding_box_train", "query", "bounding_box_test"), ["0001_c2_f0046182.jpg", *MARKET], {}),
    "veri776": (("image_train", "image_query", "image_test"), ["0002_c002_00030600_0.jpg", *MARKET], {}),
    "cuhk01": (("campus",), [f"{pid:04d}00{shot}.png" for pid in (1, 600) for shot in (1, 2, 3, 4)], {}),
    "occluded": (("occluded_body_images", "whole_body_images"), ["001/001_01.tif", "001/a.tif", "2/2_1.tif"], {}),
    "pattern": (
        ("a", "b/c", "d"),
        ["one_north.jpg", "two_south.png", "-1_north.jpg"],
        {"pattern": "{pid}_{camid}", "folders": {"a": "train", "b/c": "query", "d": "gallery"}},
    ),
    "folder": (("a", "b/c"), [*MARKET, "notes.txt", "without_suffix"], {}),
}


def grow(
    root: Path, folders: tuple[str, ...], names: list[str], rng: random.Random, contents: tuple[bytes, ...] = (b"",)
) -> int:
    """Make a tree in which some names are faulty; returns its number of files."""
    shutil.rmtree(root, ignore_errors=True)
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for name in names:
            mutant = mutated(name, rng) if rng.random() < 0.4 else name
            parts = [part for part in mutant.replace("\0", "").split("/") if part not in ("", ".", "..")]
            plant(root / folder, parts, rng, contents)
    return sum(len(files) for folder in folders for _, _, files in os.walk(root / folder))


def plant(folder: Path, parts: list[str], rng: random.Random, contents: tuple[bytes, ...]) -> None:
    path = Path(os.fsencode(folder / "/".join(parts)).decode("utf-8", "surrogateescape"))
    if rng.random() < 0.03:
        path = path.with_name(path.name + "\udcff.jpg")
    if not parts or path.exists() or path.is_symlink() or any(above.is_file() for above in path.parents):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fault = rng.random()
    if fault < 0.03:
        path.symlink_to(folder / "nowhere")
    elif fault < 0.06:
        (path / "empty").mkdir(parents=True)
    else:
        path.write_bytes(rng.choice(contents))


@rounds
@pytest.mark.parametrize("name", TREES)
def test_every_file_of_a_tree_is_accounted_for(tmp_path, name, rounds):
    folders, names, options = TREES[name]
    rng, listed = random.Random(name), 0
    for _ in range(rounds):
        files = grow(tmp_path / "root", folders, names, rng)
        found = account(name, tmp_path / "root", **options)
        assert found in (None, files)
        listed += found is not None
    assert listed > rounds // 4  # most trees are listed in spite of some faults


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_every_file_of_a_tree_is_stored_rejected_or_left_out(tmp_path, name):
    folders, names, options = TREES[name]
    rng, stored = random.Random(name), 0
    image = io.BytesIO()
    Image.new("RGB", (8, 16), (200, 0, 0)).save(image, "PNG")
    contents = (image.getvalue(), image.getvalue(), image.getvalue()[:40], b"")
    for number in range(50):
        files = grow(tmp_path / "root", folders, names, rng, contents)
        manifest = checked(lambda number=number: ingested(name, tmp_path, f"store{number}", options))
        if manifest is None:
            continue
        stored += manifest["stored"]
        assert manifest["read"] == manifest["stored"] + sum(manifest["rejected"].values())
        assert manifest["read"] + sum(manifest["left_out"].values()) == files
    assert stored > 50


def ingested(name: str, folder: Path, store: str, options: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the store of a dataset's images."""
    dataset = open_dataset(name, str(folder / "root"), **options)
    write_shard(folder / store, 0, list(dataset.records()), dataset.read)
    left_out = {reason: count for reason, (count, _) in dataset.left_out.items()}
    return finish_store(folder / store, 1, dataset.name, dataset.version, dataset.ignored, left_out=left_out)


@rounds
def test_every_member_of_an_archive_is_accounted_for(tmp_path, rounds):
    rng, listed = random.Random(11), 0
    file = tmp_path / "pool.tar"
    for number in range(rounds):
        with tarfile.open(file, "w", format=number % 3) as tar:
            for name in (*MARKET, "notes.txt", "without_suffix"):
                member = tarfile.TarInfo(mutated(name, rng) if rng.random() < 0.4 else name)
                member.type = rng.choice([tarfile.REGTYPE] * 20 + [tarfile.SYMTYPE, tarfile.FIFOTYPE])
                tar.addfile(member)
        found = account("webdataset", file)
        assert found in (None, len(MARKET) + 2)
        listed += found is not None
        file.write_bytes(flipped(file.read_bytes(), rng))
        account("webdataset", file)
    assert listed > rounds // 4


# Lists

MSMT = [f"{pid:04d}/{pid:04d}_{shot:03d}_01_0303morning_0008_0.jpg {pid}" for pid in (0, 1) for shot in range(3)]


@rounds
def test_every_line_of_msmt17s_lists_is_accounted_for(tmp_path, rounds):
    rng, listed = random.Random(17), 0
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
    for _ in range(rounds):
        lines = 0
        for name in ("train", "val", "query", "gallery"):
            text = "\n".join(mutated(line, rng) if rng.random() < 0.4 else line for line in MSMT)
            (tmp_path / f"list_{name}.txt").write_text(text, encoding="utf-8", newline="")
            lines += sum(bool(line.strip()) for line in text.removeprefix("\ufeff").splitlines())
        found = account("msmt17", tmp_path)
        assert found in (None, lines)
        listed += found is not None
    assert listed > rounds // 4


@rounds
def test_every_row_of_cuhk03_is_accounted_for(tmp_path, rounds):
    rng, listed = random.Random(3), 0
    (tmp_path / "images_detected").mkdir()
    for _ in range(rounds):
        rows = {split: [f'["1_00{n}_1_01.png", {n}, 0]' for n in range(4)] for split in ("train", "query", "gallery")}
        for split in rows:
            if rng.random() < 0.7:
                rows[split][rng.randrange(4)] = rng.choice(
                    ['["1.png", "1", 0]', "[]", "null", '["../x", 1, 0]', '["1.png", 1e9, 0]', "{}", '["1.txt", 1, 0]']
                )
        text = "{" + ", ".join(f'"{split}": [{", ".join(some)}]' for split, some in rows.items()) + "}"
        file = tmp_path / "splits_new_detected.json"
        file.write_text(text)
        found = account("cuhk03", tmp_path)
        assert found in (None, 12)
        listed += found is not None
        file.write_bytes(flipped(text.encode(), rng))
        account("cuhk03", tmp_path)
    assert listed > rounds // 4


@rounds
def test_every_key_of_an_lmdb_is_accounted_for(tmp_path, rounds):
    rng = random.Random(5)
    keys = [f"00_00_0000_{number:08d}" for number in range(6)]
    environment = lmdb.open(str(tmp_path / "lmdb"), map_size=2**20)
    with environment.begin(write=True) as transaction:
        for key in keys:
            transaction.put(key.encode(), b"x")
    environment.close()
    for number in range(rounds):
        listed = [mutated(key, rng) if rng.random() < 0.4 else key for key in keys]
        content = rng.choice([listed, {"keys": listed, "pids": [1] * 6}])
        file = tmp_path / "keys.pkl"
        data = pickle.dumps(content, protocol=number % 6)
        file.write_bytes(data)
        assert account("lmdb", tmp_path / "lmdb") == 6
        file.write_bytes(flipped(data, rng))
        account("lmdb", tmp_path / "lmdb")


@rounds
def test_a_damaged_lmdb_is_refused_or_read_and_never_kills_the_process(tmp_path, rounds):
    rng = random.Random(6)
    environment = lmdb.open(str(tmp_path / "sound"), map_size=2**20)
    with environment.begin(write=True) as transaction:
        for number in range(150):  # branch pages, leaf pages and values of several pages
            transaction.put(b"image %03d" % number, rng.randbytes(rng.choice([20, 500, 9000])))
    environment.close()
    sound = (tmp_path / "sound" / "data.mdb").read_bytes()
    pages = range(0, len(sound), 4096)
    refused = 0
    for number in range(rounds):
        content = bytearray(sound)
        for _ in range(rng.choice([1, 1, 20])):
            content[rng.choice(pages) + rng.choice([rng.randrange(24), rng.randrange(4096)])] = rng.randrange(256)
        file = tmp_path / f"{number}.mdb"
        file.write_bytes(content)
        dataset = checked(lambda path=file: open_dataset("lmdb", str(path)))
        if dataset is None:
            refused += 1
            continue
        assert all(isinstance(dataset.read(record), bytes) for record in dataset.records())
    assert 0 < refused < rounds


# Tables

ROWS = [
    (f"a/{number}.jpg", number % 3, number % 2, split) for number, split in enumerate(["train", "query", "gallery"])
]
CELLS = [
    None,
    "",
    "nan",
    "NA",
    "<NA>",
    "1.0",
    " 1 ",
    "x",
    -1,
    2.0,
    2.5,
    1e300,
    True,
    "a\\b.jpg",
    "../x",
    "a\nb",
    "Train",
    b"x",
]


@rounds
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_every_row_of_a_table_is_accounted_for(tmp_path, suffix, rounds):
    rng = random.Random(suffix)
    file, listed = tmp_path / f"list{suffix}", 0
    for _ in range(rounds):
        table = [list(row) for row in ROWS * 3]
        for _ in range(rng.randint(0, 2)):
            row, column = rng.randrange(len(table)), rng.randrange(4)
            table[row][column] = rng.choice(CELLS) if column else mutated(str(table[row][0]), rng)
        try:
            write_table(file, table, rng)
        except (pa.ArrowException, UnicodeError):  # a cell that such a file cannot hold
            continue
        found = account("table", file)
        assert found in (None, len(table))
        listed += found is not None
        file.write_bytes(flipped(file.read_bytes(), rng))
        account("table", file)
    assert listed > rounds // 4


@rounds
def test_a_quote_that_is_opened_anywhere_costs_no_row(tmp_path, rounds):
    rng, listed, refused = random.Random(8), 0, 0
    notes = ["plain", "a b c d", '"quoted, or not"']
    rows = [f"a/{number}.jpg,{rng.choice(notes)}" for number in range(40)]
    for _ in range(rounds):
        text = "\n".join(["path,note", *rows, ""])[: rng.choice([None, -1])]
        starts = [match.end() for match in re.finditer("[,\n]", text)]  # where a quote opens a cell
        place = rng.choice(starts) if rng.random() < 0.7 else rng.randrange(len(text) + 1)
        (tmp_path / "list.csv").write_text(text[:place] + '"' + text[place:])
        found = account("table", tmp_path / "list.csv")
        assert found in (None, len(rows))
        listed, refused = listed + (found is not None), refused + (found is None)
    assert listed
    assert refused


def write_table(file: Path, table: list[list], rng: random.Random) -> None:
    names = ["path", "pid", "camid", "split"]
    if file.suffix == ".parquet":
        columns = [list(column) for column in zip(*table, strict=True)]
        texts = [column if len({type(cell) for cell in column}) == 1 else list(map(str, column)) for column in columns]
        pq.write_table(pa.table(dict(zip(names, texts, strict=True))), file)
        return
    separator = "\t" if file.suffix == ".tsv" else rng.choice(",;|")
    encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16"])
    with file.open("w", newline="", encoding=encoding) as stream:
        writer = csv.writer(stream, delimiter=separator, lineterminator=rng.choice(["\n", "\r\n"]))
        writer.writerows([names, *table])


@rounds
def test_damaged_lists_provenance_and_yaml_are_refused_in_one_line(tmp_path, rounds):
    rng = random.Random(0)
    lists = {
        "list.txt": "\n".join(f"images/{number}.jpg" for number in range(5)).encode(),
        "list.csv": b"rank,path\n" + b"".join(b"%d,images/%d.jpg\n" % (number, number) for number in range(5)),
        "list.pkl": pickle.dumps([f"images/{number}.jpg" for number in range(5)]),
    }
    origins = b"key,origin\n" + b"".join(b"%d.jpg,near\n" % number for number in range(5))
    yaml = b"name: a\npool: {dataset: folder, root: pool}\nfinetune:\n  epochs: 1\n  lr: 0.1\n"
    pool = Source(dataset="folder", root="pool", provenance=str(tmp_path / "origins.csv"), relevant="near")
    for number in range(rounds):
        for name, content in lists.items():
            (tmp_path / name).write_bytes(flipped(content, rng))
            entries = checked(lambda name=name: read_list(tmp_path / name))
            if entries:
                checked(lambda entries=entries: match_entries(entries, [f"{n}.jpg" for n in range(5)]))
        (tmp_path / "origins.csv").write_bytes(flipped(origins, rng))
        os.utime(tmp_path / "origins.csv", ns=(number, number))
        checked(lambda: provenance_of(pool))
        text = flipped(yaml, rng).decode("utf-8", "replace")
        checked(lambda text=text: parse_yaml(text, "a.yaml"))
