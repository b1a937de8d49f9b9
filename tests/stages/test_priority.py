"""Priorities in θs space: by likeness to the target and by clusters; without a cluster of machines."""

import io
import json

import numpy as np
import pytest

from known_features import DIMENSIONS, IMAGES, directions, work_on
from rayreid.config import Score, Select
from rayreid.data.store.store import ImageStore
from rayreid.execution.resources import Share
from rayreid.files import checksum
from rayreid.selection.subset_file import subset_rows
from rayreid.stages import features, priority, select


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
def test_a_subset_of_them_says_what_it_is(known, worked_here, strategy):
    made = known(2)
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


@pytest.mark.parametrize(("levels", "sizes"), [([12, 3], [12, 3]), (3, [21, 8, 3]), ("auto", [15, 4])])
def test_a_hierarchy_shares_a_cut_at_each_level(known, levels, sizes):
    taken, facts = compute(known(2), Select(strategy="hierarchical", levels=levels))
    assert [facts[f"clusters_{number}"] for number in range(1, len(facts))] == sizes
    assert sorted(-taken[np.isfinite(taken)]) == list(range(IMAGES - 1))


def test_near_duplicates_are_thinned_out_and_their_groups_kept(known, worked_here):
    made = known(2)
    config = Select(strategy="dedup", similarity=0.5, keep=1, fraction=1.0)
    assert not config.whole
    said = io.StringIO()
    ranked = work_on(priority.plan(made.pool, made.found, {}, config, 0, None), said)
    assert "one group of near-duplicates has 59 of 60 images" in said.getvalue()
    groups, values = priority.read_groups(ranked.path, "group"), priority.read_priority(ranked.path)["priority"]
    kept = np.isfinite(values.to_numpy())
    assert kept.sum() == 1 and ranked.facts["copies"] == IMAGES - 2  # all images of this store have the same bytes
    assert set(groups[groups >= 0]) == set(np.flatnonzero(kept)) and groups[7] == -1
    subset = work_on(select.plan(made.pool, ranked, config, 0, None))
    assert subset.facts["images"] == 1
