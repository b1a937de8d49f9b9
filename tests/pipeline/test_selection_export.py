"""The kept images of selections, handed on in files that others read, and this platform too."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayreid.config import Select
from rayreid.data.datasets.tar_shards import TarShards
from rayreid.errors import UserError
from rayreid.pipeline.compared_selection import Selection
from rayreid.pipeline.selection_export import Export, planned_export
from rayreid.selection.provenance import Provenance
from rayreid.selection.strategies import cut
from rayreid.stages.select import ranking
from small_store import small_store

POOL = SimpleNamespace(root=None)
KEPT = 5


@pytest.fixture
def store(tmp_path):
    return small_store(tmp_path / "store")


@pytest.fixture
def found(store) -> list[Selection]:
    drawn = np.random.default_rng(0).random(len(store))
    drawn[[2, 3]] = 2.0  # a tie at the top
    drawn[4] = np.nan
    manifest = {"count": KEPT}
    return [
        Selection("at random", "random", "select/1", manifest, drawn),
        Selection("at_random", "random", "select/2", manifest, -drawn),
    ]


def order(store, one: Selection) -> list[str]:
    ranked = sorted((-value, key) for key, value in zip(store.keys, one.priority, strict=True) if not np.isnan(value))
    return [key for _, key in ranked][:KEPT]


@pytest.mark.parametrize("format", ["csv", "parquet", "txt"])
def test_a_list_selects_the_same_images_again(tmp_path, store, found, format):
    assert "2 selections" in Export(format, tmp_path / "kept").write(store, found, POOL, None)
    for one, name in zip(found, ("at_random", "at_random_"), strict=True):
        path = tmp_path / "kept" / f"{name}.{format}"
        again = ranking(Select(strategy="list", list=str(path), count=KEPT), 0, store, None)
        for size in (1, 3, KEPT):
            np.testing.assert_array_equal(cut(store.keys, again, size), cut(store.keys, one.priority, size))


def test_a_text_is_one_key_per_line_best_first(tmp_path, store, found):
    Export("txt", tmp_path / "kept").write(store, found, POOL, None)
    assert (tmp_path / "kept/at_random.txt").read_text().splitlines() == order(store, found[0])
    assert order(store, found[0])[:2] == ["0-2.png", "0-3.png"]


def test_tables_hold_what_is_known(tmp_path, store, found):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/0-2.png").write_bytes(b"")
    origins = pa.table({"key": store.keys.tolist(), "origin": ["far"] * 6 + ["near"] * 6})
    provenance = Provenance(lambda: origins, "near")
    pool = SimpleNamespace(root=str(tmp_path / "pool"))
    Export("parquet", tmp_path / "parquet").write(store, found, pool, provenance)
    table = pq.read_table(tmp_path / "parquet/at_random.parquet")
    assert table.column_names == ["key", "priority", "rank", "origin", "path"]
    assert table["rank"].to_pylist() == [1, 2, 3, 4, 5] and table["priority"][0].as_py() == 2.0
    assert table["origin"].to_pylist()[:2] == ["far", "far"]
    assert table["path"].to_pylist()[:2] == [str(tmp_path / "pool/0-2.png"), None]
    Export("csv", tmp_path / "csv").write(store, found, POOL, None)
    rows = list(csv.DictReader((tmp_path / "csv/at_random.csv").open()))
    assert [row["key"] for row in rows] == order(store, found[0]) and list(rows[0]) == ["key", "priority", "rank"]
    assert [float(row["priority"]) for row in rows] == table["priority"].to_pylist()


def test_archives_hold_the_original_bytes(tmp_path, store, found):
    Export("webdataset", tmp_path / "kept").write(store, found, POOL, None)
    dataset = TarShards(tmp_path / "kept/at_random")
    kept = sorted(order(store, found[0]))
    expected = [bytes(store.encoded(row)) for row in store.rows_of_keys(kept)]
    assert [dataset.read(record) for record in dataset.records()] == expected


def test_the_same_export_again_changes_nothing_and_another_is_refused(tmp_path, store, found):
    folder = tmp_path / "kept"
    Export("txt", folder).write(store, found, POOL, None)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "already there" in Export("txt", folder).write(store, found, POOL, None)
    for export, selections in (("csv", found), ("txt", found[:1])):
        with pytest.raises(UserError, match="holds another export; remove it, or name an empty folder"):
            Export(export, folder).write(store, selections, POOL, None)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert json.loads((folder / "export.json").read_text())["selections"]["at random"]["images"] == KEPT


def test_an_export_of_other_subsets_is_refused_before_these_are_made(tmp_path, store, found):
    subsets = {one.label: one.artifact for one in found}
    Export("csv", tmp_path / "kept").check(subsets, POOL)  # nothing there yet
    Export("csv", tmp_path / "kept").write(store, found, POOL, None)
    Export("csv", tmp_path / "kept").check(subsets, POOL)
    for export, others, pool in (
        ("txt", subsets, POOL),
        ("csv", {**subsets, "at random": "select/9"}, POOL),
        ("csv", {"random": "select/1", "at_random": "select/2"}, POOL),
        ("csv", subsets, SimpleNamespace(root=str(tmp_path))),
    ):
        with pytest.raises(UserError, match="holds another export"):
            Export(export, tmp_path / "kept").check(others, pool)


def test_other_origins_or_another_place_of_the_pool_make_another_export(tmp_path, store, found):
    def origins(*names: str) -> Provenance:
        return Provenance(lambda: pa.table({"key": store.keys.tolist(), "origin": names}), "near")

    known = origins(*["far", "near"] * 6)
    Export("csv", tmp_path / "kept").write(store, found, POOL, known)
    assert "already there" in Export("csv", tmp_path / "kept").write(store, found, POOL, known)
    moved = SimpleNamespace(root=str(tmp_path))
    changed = origins(*["near"] * 12)
    for pool, provenance in ((POOL, None), (POOL, changed), (moved, known)):
        with pytest.raises(UserError, match="holds another export"):
            Export("csv", tmp_path / "kept").write(store, found, pool, provenance)
    Export("txt", tmp_path / "keys").write(store, found, POOL, known)
    assert "already there" in Export("txt", tmp_path / "keys").write(store, found, moved, changed)


def test_a_foreign_folder_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "mine.txt").write_text("dear diary")
    with pytest.raises(UserError, match="holds files that are no export of rayreid; name an empty folder"):
        Export("txt", tmp_path)
    with pytest.raises(UserError, match="a file, not a folder"):
        Export("txt", tmp_path / "mine.txt")
    with pytest.raises(UserError, match="--export xlsx: there is no such format; choose csv, parquet, txt, webdataset"):
        Export("xlsx", tmp_path / "new")
    with pytest.raises(UserError, match="--export-to there: say with --export in which format"):
        planned_export(None, "there", tmp_path)
    assert planned_export(None, None, tmp_path) is None
    assert planned_export("csv", None, tmp_path / "x").folder == tmp_path / "x/kept-csv"


def test_a_failed_export_leaves_nothing(tmp_path, store, found):
    (tmp_path / "kept").mkdir()  # an empty folder will do
    broken = Selection("broken", "random", "select/3", {"count": len(store) + 1}, found[0].priority)
    with pytest.raises(UserError):
        Export("txt", tmp_path / "kept").write(store, [found[0], broken], POOL, None)
    assert list((tmp_path / "kept").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "store"}
    Export("txt", tmp_path / "kept").write(store, found, POOL, None)
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "store"}
