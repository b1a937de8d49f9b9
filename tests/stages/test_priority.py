"""Priorities in θs space: by likeness to the target and by clusters; without a cluster of machines."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rayreid.config import Score, Select
from rayreid.console import Screen
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.execution import shard_results
from rayreid.execution.production import StageContext
from rayreid.execution.resources import Share
from rayreid.files import checksum
from rayreid.selection.subset_file import subset_rows
from rayreid.stages import features, priority, select
from rayreid.storage.artifacts import Artifact
from recorded_run import RecordedRun

IMAGES, DIMENSIONS = 60, 8


def work_on(artifact: Artifact) -> Artifact:
    """Do an artifact's job here."""
    artifact.path.mkdir(parents=True, exist_ok=True)
    facts = artifact.job(StageContext(artifact, artifact.path, RecordedRun(), Screen(Console(file=io.StringIO()))))
    artifact.finish(facts)
    return artifact


def stored(root, name: str, split: str, shards: int) -> Artifact:
    artifact = Artifact(root, "ingest", 1, {"name": name, "shards": shards})
    artifact.path.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 16)).save(buffer, "JPEG")
    # Neighbours in the index stand in different shards.
    for shard in range(shards):
        numbers = range(shard, IMAGES, shards)
        records = [Record(f"{name}{n:02d}.jpg", n if split == "train" else -1, -1, split, "") for n in numbers]
        write_shard(artifact.path, shard, records, lambda record: buffer.getvalue())
    finish_store(artifact.path, shards, name, "")
    artifact.finish({})
    return artifact


def directions(rows: np.ndarray, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((IMAGES, DIMENSIONS))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True))[rows].astype(np.float16)


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A pool of some shards and a target with their features; image 7 of each cannot be decoded."""

    def stream(store, rows, build, batch_size):
        seed = int(ImageStore(store).keys[0].startswith("t"))
        for piece in rows:
            good = piece[piece != 7]
            yield good, directions(good, seed), {7: "truncated"} if 7 in piece else {}

    monkeypatch.setattr(shard_results, "scoring_actors", lambda: Share(4, 1, True))
    monkeypatch.setattr(shard_results, "stream", stream)
    proxy = Artifact(tmp_path, "proxy", 1, {})
    proxy.path.mkdir(parents=True)
    (proxy.path / "backbone.safetensors").write_bytes(b"theta")
    config = Score(max_bad_fraction=0.1)

    def known(shards: int):
        pool, target = stored(tmp_path, "p", "pool", shards), stored(tmp_path, f"t{shards}", "train", 1)
        found = work_on(features.plan(pool, proxy, "all", config))
        theirs = work_on(features.plan(target, proxy, "train", config))
        return SimpleNamespace(pool=pool, target=target, found=found, theirs=theirs, proxy=proxy)

    return known


def compute(known, config, seed=0):
    one = priority.plan(known.pool, known.found, {"": (known.target, known.theirs)}, config, seed, None)
    return priority._compute(
        config, seed, {role: artifact.path for role, artifact in one.inputs.items()}, Share(1, 1, False)
    )


def test_features_are_kept_by_image(known):
    made = known(3)
    store = ImageStore(made.pool.path)
    found = np.full((IMAGES, DIMENSIONS), np.inf, np.float16)
    for rows, values in features.read(made.found.path, store, "all"):
        found[rows] = values
    assert np.isnan(found[7]).all() and found.dtype == np.float16
    np.testing.assert_array_equal(np.delete(found, 7, 0), directions(np.delete(np.arange(IMAGES), 7)))
    facts = dict(made.found.facts)
    assert facts.pop("gpu_hours") >= 0 and facts == {"images": IMAGES, "bad": 1}


def test_only_another_token_is_part_of_the_features_id(known):
    made = known(1)
    config = Score(max_bad_fraction=0.1)
    assert features.plan(made.pool, made.proxy, "all", config, "class").id == made.found.id
    assert features.plan(made.pool, made.proxy, "all", config, "patch").id != made.found.id


def test_likeness_to_the_target_is_the_cosine_to_its_nearest_image(known):
    cosines, facts = compute(known(3), Select(strategy="target_similarity"))
    usable = np.delete(np.arange(IMAGES), 7)
    mine, theirs = (directions(usable, seed).astype(np.float64) for seed in (0, 1))
    np.testing.assert_allclose(cosines[usable], (mine @ theirs.T).max(axis=1), atol=2e-3)
    assert np.isnan(cosines[7]) and facts == {"target_images": IMAGES - 1}


@pytest.mark.parametrize("strategy", ["target_similarity", "cluster"])
def test_priorities_do_not_depend_on_how_the_pool_is_dealt_to_shards(known, strategy):
    config = Select(strategy=strategy, clusters=5)
    one, four = (compute(known(shards), config)[0] for shards in (1, 4))
    np.testing.assert_array_equal(one, four)
    assert np.isnan(one).sum() == 1


def test_clusters_share_a_cut(known):
    made = known(2)
    taken, facts = compute(made, Select(strategy="cluster", clusters=5))
    assert facts == {"clusters": 5}
    assert (np.floor(taken[np.isfinite(taken)]) == 0).sum() == 5


@pytest.mark.parametrize("strategy", ["target_similarity", "cluster"])
def test_a_subset_of_them_says_what_it_is(known, strategy, monkeypatch):
    made = known(2)
    remote = SimpleNamespace(remote=lambda *args: priority._compute(*args))
    monkeypatch.setattr(priority, "ray", SimpleNamespace(remote=lambda **kw: lambda f: remote, get=lambda value: value))
    monkeypatch.setattr(priority, "training_share", lambda resources: SimpleNamespace(cpus=1, gpu=False))
    config = Select(strategy=strategy, fraction=0.25)
    ranked = work_on(priority.plan(made.pool, made.found, {"": (made.target, made.theirs)}, config, 0, None))
    subset = work_on(select.plan(made.pool, ranked, config, 0, None))
    store = ImageStore(made.pool.path)
    rows = subset_rows(store, subset.path)
    values = priority.read_priority(ranked.path)["priority"].to_numpy()
    assert len(rows) == 15 and 7 not in rows
    assert values[rows].min() > np.nanmax(np.delete(values, rows))
    manifest = json.loads((subset.path / "manifest.json").read_text())
    assert manifest["strategy"] == strategy and manifest["fraction"] == 0.25
    assert (manifest["count"], manifest["pool_images"], manifest["cut"]) == (15, IMAGES, values[rows].min())
    assert manifest["pool"] == {"artifact": str(made.pool), "fingerprint": store.fingerprint}
    weights = checksum(made.proxy.path / "backbone.safetensors")
    assert manifest["proxies"] == {"source": {"artifact": str(made.proxy), "weights": weights}}


def test_another_fraction_computes_no_priority_anew(known):
    made = known(1)
    ids = {
        priority.plan(made.pool, made.found, {}, Select(strategy="cluster", fraction=fraction), 0, None).id
        for fraction in (0.1, 0.5)
    }
    assert len(ids) == 1
    configs = [Select(strategy="cluster"), Select(strategy="cluster", clusters=9)]
    assert len({priority.plan(made.pool, made.found, {}, config, 0, None).id for config in configs}) == 2
    assert len({priority.plan(made.pool, made.found, {}, configs[0], seed, None).id for seed in (0, 1)}) == 2


def test_the_figures_of_priorities_leave_out_what_cannot_be_decoded(known):
    own = known(3)
    store = ImageStore(own.pool.path)
    values = np.where(np.arange(IMAGES) == 7, np.nan, np.arange(IMAGES, dtype=float))
    found = priority._diagnosis(store, values, features.read(own.found.path, store, "all"))
    mean = directions(np.delete(np.arange(IMAGES), 7)).astype(np.float64).mean(axis=0)
    assert found.images == IMAGES - 1 and found.mean == pytest.approx(np.nanmean(values))
    assert found.source_mean_length == pytest.approx(np.linalg.norm(mean), rel=1e-3)
    assert found.rank_direction is None and found.rank_brightness is None  # no θt; all images are black
