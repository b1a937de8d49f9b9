import os
import pickle
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayreid.data.datasets import table_file
from rayreid.data.datasets.place import Place
from rayreid.data.datasets.table import Table
from rayreid.data.datasets.table_file import TableFile, as_text
from rayreid.data.store.shards import MissingImageError
from rayreid.data.store.store import Record
from rayreid.errors import UserError

ROWS = {
    "path": ["a/1.jpg", "a/2.jpg", "b, c/3.jpg", "ü.png"],
    "pid": [7, 7, None, 0],
    "camid": [1, 2, None, None],
    "split": ["train", "query", "gallery", None],
    "key": ["seven/1.jpg", "seven/2.jpg", None, None],
}


@pytest.fixture
def images(tmp_path) -> Path:
    for path in ROWS["path"]:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    return tmp_path


def write(path: Path, columns: dict) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in columns.items()}).to_csv(
            path, index=False
        )
    return str(path)


def listed(root: str, **options) -> list[Record]:
    return list(Table(root, **options).records())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_all_columns(images, suffix, monkeypatch):
    monkeypatch.setattr(table_file, "_BATCH_ROWS", 3)  # several pieces
    dataset = Table(write(images / f"list{suffix}", {"other": [1, 2, "x", 4] if suffix == ".csv" else [1] * 4, **ROWS}))
    records = list(dataset.records())
    assert [(record.key, record.pid, record.camid, record.split) for record in records] == [
        ("seven/1.jpg", 7, 1, "train"),
        ("seven/2.jpg", 7, 2, "query"),
        ("b, c/3.jpg", -1, -1, "gallery"),
        ("ü.png", 0, -1, "pool"),
    ]
    read = pickle.loads(pickle.dumps(dataset.read))
    assert [read(record).decode() for record in records] == ROWS["path"]
    assert dataset.ignored == []


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_paths_alone_are_a_pool(images, suffix):
    records = listed(write(images / f"list{suffix}", {"path": ROWS["path"]}))
    assert [(record.key, record.pid, record.camid, record.split) for record in records] == [
        (path, -1, -1, "pool") for path in ROWS["path"]
    ]


def test_columns_as_other_programs_write_them(images):
    pid = pa.array([3.0, float("nan"), None, 4.0])
    split = pa.array(["train", "query", "train", None]).dictionary_encode()
    columns = {"path": pa.array(ROWS["path"], pa.large_string()), "pid": pid, "camid": pa.array([1] * 4, pa.uint64())}
    records = listed(write(images / "list.parquet", {**columns, "split": split}))
    assert [(record.pid, record.camid, record.split) for record in records] == [
        (3, 1, "train"),
        (-1, 1, "query"),
        (-1, 1, "train"),
        (4, 1, "pool"),
    ]


@pytest.mark.parametrize("images_option", ["pictures", "absolute", "uri"])
def test_images_in_another_folder(images, tmp_path, images_option):
    (images / "a").rename(images / "pictures")
    (tmp_path / "lists").mkdir()
    root = write(tmp_path / "lists/list.csv", {"path": ["1.jpg"]})
    folder = {"pictures": "../pictures", "absolute": str(images / "pictures"), "uri": (images / "pictures").as_uri()}
    dataset = Table(root, images=folder[images_option])
    (record,) = dataset.records()
    assert record.key == "1.jpg"
    assert dataset.read(record) == b"a/1.jpg"
    with pytest.raises(UserError, match=r"folder of the images.*absent.* does not exist"):
        Table(root, images="absent")


def test_a_table_named_by_a_uri_or_from_elsewhere(images, monkeypatch):
    path = Path(write(images / "list.csv", {"path": ["a/1.jpg"]}))
    monkeypatch.chdir(images)
    relative = Table("list.csv")
    monkeypatch.chdir("/")
    for dataset in (relative, Table(path.as_uri())):
        (record,) = dataset.records()
        assert dataset.read(record) == b"a/1.jpg"


def test_paths_that_lead_out_of_the_root_are_ignored(images, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "9.jpg").write_bytes(b"secret")
    (images / "folder-link").symlink_to(outside)
    (images / "link.jpg").symlink_to(outside / "9.jpg")
    (images / "inside.jpg").symlink_to(images / "a/1.jpg")
    (images / "inside").symlink_to(images / "a")
    bad = [str(outside / "9.jpg"), "../9.jpg", "a/../../9.jpg", "folder-link/9.jpg", "link.jpg", "a\0.jpg", "", None]
    dataset = Table(write(images / "list.parquet", {"path": [*bad, "inside.jpg", "inside/2.jpg"]}))
    records = list(dataset.records())
    assert [record.key for record in records] == ["inside.jpg", "inside/2.jpg"]
    assert [dataset.read(record) for record in records] == [b"a/1.jpg", b"a/2.jpg"]
    assert dataset.ignored == [
        *((path, "outside its root") for path in bad[:5]),
        ("a\0.jpg", "not a path"),
        ("row 7", "not a path"),
        ("row 8", "not a path"),
    ]


def test_an_image_that_is_not_there_is_unreadable_not_fatal(images):
    dataset = Table(write(images / "list.csv", {"path": ["absent.jpg", "a"]}))
    for record in dataset.records():
        with pytest.raises((FileNotFoundError, MissingImageError)):
            dataset.read(record)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("pid", ["1", "2", "x7", "4"], r"row 3 .*column pid: 'x7' is not an identity: a whole number from -1"),
        ("pid", ["1", "2", "3", "4.5"], "row 4 .*column pid: '4.5'"),
        ("pid", [1, -2, 3, 4], "row 2 .*column pid: '?-2'?"),
        ("pid", [1, 2, 2**31, 4], "row 3 .*column pid"),
        ("camid", [1, 2, 2**15, 4], "row 3 .*column camid: .* to 32767"),
        ("split", ["train", "test", "query", None], "row 2 .*column split: 'test' .*train, query, gallery, pool"),
    ],
)
def test_impossible_values_are_named_by_row_and_column(images, monkeypatch, suffix, column, values, message):
    monkeypatch.setattr(table_file, "_BATCH_ROWS", 2)
    root = write(images / f"list{suffix}", {**ROWS, column: values})
    with pytest.raises(UserError, match=message) as error:
        listed(root)
    assert root in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [[1.5, 2.0, 3.0, 4.0], [[1], [2], [3], [4]]])
def test_columns_of_an_impossible_type(images, values):
    with pytest.raises(UserError, match=r"row 1 .*column pid"):
        listed(write(images / "list.parquet", {**ROWS, "pid": values}))


def test_tables_that_are_none(images, tmp_path):
    def refused(name: str, content: bytes | None, message: str) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            listed(str(tmp_path / name))
        assert "\n" not in str(error.value)

    refused("absent.csv", None, "does not exist")
    refused("a", None, "does not exist")  # a folder
    refused("list.xlsx", b"x", "no .csv, .tsv or .parquet")
    refused("empty.csv", b"", "cannot be read")
    refused("heading.csv", b"path,pid\n", "has no image")
    refused("other.csv", b"file,pid\nx,1\n", "has no column path, only file, pid")
    refused("twice.csv", b"path,path\nx,y\n", "two columns path")
    refused("ragged.csv", b"path\nx\ny,1\n", "cannot be read")
    refused("latin.csv", b"path\n\xff.jpg\n", "cannot be read")
    refused("bad.parquet", b"PAR1 no PAR1", "cannot be read")
    refused("out.csv", b"path\n/1.jpg\n", r"has no image \(1 ignored, first /1.jpg: outside its root\)")
    with pytest.raises(UserError, match=r"needs a root"):
        Table(None)


def test_a_long_table_is_read_piece_by_piece(images, monkeypatch):
    root = write(images / "list.parquet", {"path": ["a/1.jpg"] * 5 + ["x"], "pid": [1] * 5 + [-7]})
    monkeypatch.setattr(table_file, "_BATCH_ROWS", 2)
    records = iter(Table(root).records())
    assert [next(records).pid for _ in range(4)] == [1] * 4  # the wrong sixth row has not been looked at
    with pytest.raises(UserError, match=r"row 6"):
        list(records)


def test_a_folder_of_another_name_is_not_taken_for_the_root(images):
    sibling = images.parent / f"{images.name}-private"
    sibling.mkdir()
    (sibling / "1.jpg").write_bytes(b"secret")
    (images / "link").symlink_to(sibling)
    dataset = Table(write(images / "list.csv", {"path": ["link/1.jpg", "a/1.jpg"]}))
    assert [record.key for record in dataset.records()] == ["a/1.jpg"]


def test_keys_are_relative_and_posix(images):
    bad = ["../../x.jpg", "/etc/y", "a/../../b.jpg", "a\0.jpg"]
    columns = {"path": ["a/1.jpg"] * 5 + ["./a//2.jpg"], "key": [*bad, "./c.jpg", None]}
    dataset = Table(write(images / "list.parquet", columns))
    records = list(dataset.records())
    assert [record.key for record in records] == ["c.jpg", "a/2.jpg"]
    assert dataset.read(records[1]) == b"a/2.jpg"
    assert dataset.ignored == [("a/1.jpg", "key outside its root")] * 3 + [("a/1.jpg", "key not a path")]


FRAMES = {
    "floats": {"pid": [3.0, float("nan"), 4.0, -1.0], "camid": [1.0, 2.0, float("nan"), 1.0]},
    "nullable": {"pid": pd.array([3, None, 4, -1], "Int64"), "camid": pd.array([1, 2, None, 1], "Int16")},
    "texts": {"pid": ["3", None, "0004", "-1"], "camid": ["1", "2.0", "", " 1 "]},
    "categories": {"pid": pd.Categorical([3, None, 4, -1]), "camid": pd.Categorical(["1", "2", None, "1"])},
    "objects": {"pid": [3, None, "4.0", -1.0], "camid": [1, "2", float("nan"), 1]},
    "words": {"pid": ["3", "nan", "4", "-1"], "camid": ["1", "2", "<NA>", "1"]},
}


@pytest.mark.parametrize("frame", FRAMES)
def test_csv_and_parquet_of_one_data_frame_are_the_same(images, frame):
    names = {
        "split": pd.Categorical(["train", None, "gallery", "query"]),
        "key": ["one", None, "none", "N/A"],
        "note": ['a comma, "quoted"', None, "x", ";"],
    }
    table = pd.DataFrame({"path": ROWS["path"], **FRAMES[frame], **names})
    table.to_csv(images / "list.csv", index=True)
    table.to_csv(images / "missing.csv", index=False, na_rep="NaN")
    table.to_csv(images / "list.tsv", index=False, sep="\t")
    if frame != "objects":
        table.to_parquet(images / "list.parquet")
    found = [
        [(record.key, record.pid, record.camid, record.split) for record in listed(str(images / file))]
        for file in ("list.csv", "missing.csv", "list.tsv", "list.parquet")
        if (images / file).exists()
    ]
    expected = [
        ("one", 3, 1, "train"),
        ("a/2.jpg", -1, 2, "pool"),
        ("b, c/3.jpg", 4, -1, "gallery"),
        ("ü.png", -1, 1, "query"),
    ]
    assert found == [expected] * len(found)


@pytest.mark.parametrize(
    "cells",
    [
        [1.0, 2.5, 1e16, None],
        [1e-7, 123456789.0, float("inf"), -0.0],
        [True, False, True, False],
        [3, 4, 5, 6],
        pd.array([1.5, 0.1, None, 3.0], "float32"),
        pd.array([True, None, False, True], "boolean"),
        pd.array([3, None, 4, 5], "Int64"),
        pd.Categorical([1.0, 2.5, None, 1.0]),
    ],
)
def test_numbers_and_truth_values_have_one_text_in_csv_and_parquet(tmp_path, cells):
    frame = pd.DataFrame({"path": cells})
    frame.to_csv(tmp_path / "list.csv", index=False)
    frame.to_parquet(tmp_path / "list.parquet")
    csv, parquet = (
        [cell for batch in file.batches() for cell in as_text(batch.column(0)).to_pylist()]
        for file in (
            TableFile(Place(str(tmp_path / f"list.{kind}")), ("path",), "table") for kind in ("csv", "parquet")
        )
    )
    assert parquet == csv


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("bom.csv", "path,pid\r\n{},7\r\n{},8\r\n", "utf-8-sig"),
        ("utf16.csv", "path\tpid\r\n{}\t7\r\n{}\t8\r\n", "utf-16"),
        ("semicolon.csv", "path;pid\n{};7\n{};8\n", "utf-8"),
        ("bars.csv", "pid|path\n7|{}\n8|{}\n", "utf-8"),
        ("tabs.TSV", "path\tpid\n{}\t7\n{}\t8\n", "utf-8"),
        ("spaces.CSV", "path, pid, split\n{}, 7, pool\n{} , 8 ,\n", "utf-8"),
        ("quoted.csv", '"Path", "PID"\n"{}", 7\n"{}", "8"\n', "utf-8"),
        ("case.csv", "PID,Path,Split\n7,{},Pool\n8,{},\n", "utf-8"),
    ],
)
def test_csv_files_of_other_programs(images, name, text, encoding):
    (images / name).write_bytes(text.format("a/1.jpg", "ü.png").encode(encoding))
    assert [(record.key, record.pid, record.split) for record in listed(str(images / name))] == [
        ("a/1.jpg", 7, "pool"),
        ("ü.png", 8, "pool"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path,pid,note\na.jpg,1,x\nb.jpg,2,"y\nc.jpg,3,z\n', r"row 2 \(.*column note: a cell has a line break"),
        ('path,pid,note\na.jpg,1,x\nb.jpg,2,"y\nc.jpg,3,z"\n', r"row 2 \(.*column note: a cell has a line break"),
        ('path,pid\n"a.jpg,1\n' + "b.jpg,2\n" * 5000, "cannot be read"),
        ('path,pid,note\na.jpg,1,x\nb.jpg,2,"y', r"row 2 \(.*a quote is not closed"),
        ('path,pid,"note\na.jpg,1,x\n', "a quote in its first line is not closed"),
    ],
)
def test_a_quote_that_is_not_closed_costs_no_rows(tmp_path, text, message, encoding):
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=message):
        listed(str(tmp_path / "list.csv"))


def test_quotes_within_cells_are_read(tmp_path):
    (tmp_path / "list.csv").write_text('path,note\na.jpg,5" high\n"b, ""c"".jpg","say ""x"""\nd.jpg,6"')
    assert [record.key for record in listed(str(tmp_path / "list.csv"))] == ["a.jpg", 'b, "c".jpg', "d.jpg"]


def test_a_long_wrong_cell_is_cut_in_the_message(tmp_path):
    (tmp_path / "list.csv").write_text(f"path,pid\na.jpg,{'x' * 9999}\n")
    with pytest.raises(UserError, match="row 1 ") as error:
        listed(str(tmp_path / "list.csv"))
    assert len(str(error.value)) < 400


def test_paths_of_windows_and_absolute_paths_below_the_root_are_read(images, tmp_path_factory):
    (images / "back\\slash.jpg").write_bytes(b"slash")
    link = tmp_path_factory.mktemp("links") / "data"
    link.symlink_to(images)
    paths = [r"a\1.jpg", r".\a\2.jpg", f"{images}/a/1.jpg", f"{link}//b, c/3.jpg", r"back\slash.jpg"]
    keys = [None, None, r"x\1.jpg", None, None]
    (images / "sub").mkdir()
    (images / "sub/link").symlink_to(images)
    for root in (images, link):
        dataset = Table(write(images / "list.csv", {"path": paths, "key": keys}), images=str(root))
        records = list(dataset.records())
        assert [record.key for record in records] == [
            "a/1.jpg",
            "a/2.jpg",
            "x/1.jpg",
            "b, c/3.jpg",
            r"back\slash.jpg",
        ]
        assert [dataset.read(record) for record in records] == [
            b"a/1.jpg",
            b"a/2.jpg",
            b"a/1.jpg",
            b"b, c/3.jpg",
            b"slash",
        ]
    outside = Table(write(images / "list.csv", {"path": [r"C:\data\1.jpg", f"{images}/../x.jpg", "a/1.jpg"]}))
    assert len(list(outside.records())) == 1
    assert [reason for _, reason in outside.ignored] == ["outside its root"] * 2


def test_a_malformed_uri_costs_its_row_only(images):
    cells = ["file://a b%zz/1.jpg", "file://user:word@host/1.jpg", "file://", "a/1.jpg"]
    dataset = Table(write(images / "list.csv", {"path": cells}))
    assert [record.key for record in dataset.records()] == ["a/1.jpg"]
    assert dataset.ignored == [(f"row {row}", "a malformed URI") for row in (1, 2, 3)]


def test_a_pipe_does_not_block(images):
    os.mkfifo(images / "pipe.jpg")
    dataset = Table(write(images / "list.csv", {"path": ["pipe.jpg"]}))
    (record,) = dataset.records()
    with pytest.raises(MissingImageError, match="is no plain file"):
        dataset.read(record)


def test_uris_below_the_root_are_read(images):
    dataset = Table(write(images / "list.csv", {"path": [f"{images.as_uri()}/a/1.jpg"]}), images=images.as_uri())
    (record,) = dataset.records()
    assert (record.key, dataset.read(record)) == ("a/1.jpg", b"a/1.jpg")
