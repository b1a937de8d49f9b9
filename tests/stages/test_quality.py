"""Measures of a pool's images: in the store's order, resumed by shards, and the same however the work is divided."""

import io
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console

from rayreid.console import Screen
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.execution.production import StageContext, produce
from rayreid.selection.image_measures import MEASURES, measures_of
from rayreid.selection.quality_rules import kept, parse_rules
from rayreid.stages import quality
from rayreid.state_files import DamagedFileError
from rayreid.storage.artifacts import Artifact
from recorded_run import RecordedRun

SHARDS, IN_SHARD = 3, 7
TORN = {"04.jpg"}
PNG = {"05.jpg", "11.jpg"}


def encoded(record: Record) -> bytes:
    number = int(record.key[:2])
    pixels = np.random.default_rng(number).integers(0, 256, (16 + number, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG" if record.key in PNG else "JPEG", quality=60 + number)
    return buffer.getvalue()[: -40 if record.key in TORN else None]


@pytest.fixture
def pool(tmp_path) -> Artifact:
    """A stored pool; neighbours in the index stand in different shards."""
    artifact = Artifact(tmp_path, "ingest", 1, {})
    artifact.path.mkdir(parents=True)
    for shard in range(SHARDS):
        numbers = range(shard, SHARDS * IN_SHARD, SHARDS)
        write_shard(
            artifact.path, shard, [Record(f"{n:02d}.jpg", -1, -1, "pool", "") for n in numbers], encoded, "header"
        )
    finish_store(artifact.path, SHARDS, "mine", "")
    artifact.finish({})
    return artifact


@pytest.fixture
def measuring(pool, monkeypatch):
    """Runs the stage here, without Ray: tasks of some images, which stop after some; gives facts, run and what ran."""

    def measuring(size=4, stop=None, artifact=None):
        asked = []

        def measured(store, shards):
            pieces = [rows[start : start + size] for rows in shards for start in range(0, len(rows), size)]
            for number, rows in enumerate(reversed(pieces)):
                if number == stop:
                    raise KeyboardInterrupt
                asked.extend(rows.tolist())
                yield quality.measure(store, rows)

        monkeypatch.setattr(quality, "_measured", measured)
        monkeypatch.setattr(quality, "image_sheet", lambda images, titles: titles)
        one = artifact or quality.plan(pool)
        one.path.mkdir(parents=True, exist_ok=True)
        run = RecordedRun()
        facts = one.job(StageContext(one, one.path, run, Screen(Console(file=io.StringIO()))))
        return SimpleNamespace(facts=facts, run=run, asked=asked, folder=one.path)

    return measuring


def test_every_image_has_its_measures_in_the_stores_order(pool, measuring):
    made, store = measuring(), ImageStore(pool.path)
    table = quality.read_quality(made.folder)
    assert table.column_names == ["key", *MEASURES] and table["key"].to_pylist() == store.keys.tolist()
    assert {table.schema.field(name).type for name in MEASURES} == {pa.float32()}
    for row, key in enumerate(store.keys):
        found = [table[name][row].as_py() for name in MEASURES]
        if key in TORN:
            assert np.isnan(found).all()
        else:
            assert np.array_equal(found, measures_of(store.image(row), store.encoded(row)), equal_nan=True)
    assert np.isnan(table["jpeg_quality"].to_numpy()).sum() == len(TORN | PNG)
    assert (made.folder / "undecodable.tsv").read_text().startswith("04.jpg\ttruncated")


def test_the_facts_are_numbers_and_medians(measuring):
    made = measuring()
    table = quality.read_quality(made.folder)
    assert (made.facts["images"], made.facts["bad"]) == (SHARDS * IN_SHARD, len(TORN))
    assert made.facts["median"] == {name: np.nanmedian(table[name].to_numpy()) for name in MEASURES}
    assert made.run.datasets
    assert {f"figures/{name}.png" for name in MEASURES} == set(made.run.figures)
    assert made.run.drawn["figures/height.png"][::19] == ["16", "36"]


def test_a_restart_measures_only_the_shards_without_a_file(measuring, pool):
    with pytest.raises(KeyboardInterrupt):
        measuring(stop=3)
    folder = quality.plan(pool).path
    assert len(list((folder / "measures").iterdir())) == 1 and not (folder / "quality.parquet").exists()
    made = measuring()
    assert len(made.asked) == 2 * IN_SHARD and made.facts["images"] == SHARDS * IN_SHARD
    assert quality.read_quality(folder)["height"].to_pylist()[-1] == 16 + SHARDS * IN_SHARD - 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: np.save(path, np.ones((IN_SHARD, 3), np.float32)),
        lambda path: np.save(path, np.ones((IN_SHARD + 1, len(MEASURES)), np.float32)),
    ],
)
def test_a_damaged_result_is_made_again(measuring, pool, damage, caplog):
    whole = measuring()
    before = (whole.folder / "quality.parquet").read_bytes()
    damage(whole.folder / "measures" / "00001.npy")
    again = measuring()
    assert len(again.asked) == IN_SHARD and (whole.folder / "quality.parquet").read_bytes() == before
    assert "00001.npy is damaged" in caplog.text


def test_the_division_of_the_work_changes_nothing(measuring, pool):
    contents = set()
    for size in (1, 3, 100):
        made = measuring(size)
        contents.add((made.folder / "quality.parquet").read_bytes())
        for path in (made.folder / "measures").iterdir():
            path.unlink()
    assert len(contents) == 1


def test_a_pool_without_any_image_that_can_be_decoded_is_measured_too(tmp_path, measuring, monkeypatch):
    monkeypatch.setattr(__name__ + ".TORN", {f"{n:02d}.jpg" for n in range(3)})
    store = Artifact(tmp_path, "ingest", 2, {})
    store.path.mkdir(parents=True)
    write_shard(store.path, 0, [Record(f"{n:02d}.jpg", -1, -1, "pool", "") for n in range(3)], encoded, "header")
    finish_store(store.path, 1, "mine", "")
    store.finish({})
    made = measuring(artifact=quality.plan(store))
    assert made.facts == {"images": 3, "bad": 3, "median": {}}
    assert not kept(quality.read_quality(made.folder), parse_rules({})).any()


def test_a_table_of_another_form_is_refused_with_the_remedy(measuring):
    folder = measuring().folder
    table = quality.read_quality(folder)
    assert quality.read_quality(folder, SHARDS * IN_SHARD)["key"] == table["key"]
    with pytest.raises(DamagedFileError, match=r"21 rows, not 20.*remove .* run the same command again"):
        quality.read_quality(folder, 20)
    for name in ("border", "key"):
        quality.write_table(folder / "quality.parquet", table.drop_columns([name]))
        with pytest.raises(DamagedFileError, match=rf"quality.parquet .*not one column {name}.*: remove {folder}"):
            quality.read_quality(folder)


def test_the_id_depends_on_the_pool_alone(pool, tmp_path):
    one = quality.plan(pool)
    assert (one.stage, one.version, dict(one.fields), dict(one.inputs)) == ("quality", 1, {}, {"pool": pool})
    assert one.id != quality.plan(Artifact(tmp_path, "ingest", 1, {"other": 1})).id


@pytest.mark.ray
def test_tasks_measure_what_a_loop_does(pool, shared_ray, monkeypatch):
    monkeypatch.setattr(quality, "_IMAGES_PER_TASK", 4)
    made = quality.plan(pool)
    produce(made, RecordedRun(), Screen(Console(file=io.StringIO())), {})
    store, table = ImageStore(pool.path), quality.read_quality(made.path)
    good = np.flatnonzero(np.isfinite(table["height"].to_numpy()))
    expected = [measures_of(store.image(row), store.encoded(row)) for row in good]
    found = np.stack([table[name].to_numpy()[good] for name in MEASURES], axis=1)
    assert np.array_equal(found, expected, equal_nan=True) and len(good) == SHARDS * IN_SHARD - len(TORN)
    assert made.facts["bad"] == 1 and not (made.path / "measures").exists()
