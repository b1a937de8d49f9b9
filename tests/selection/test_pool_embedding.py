from importlib import util

import numpy as np
import pytest

from rayreid.errors import UserError
from rayreid.selection import pool_embedding
from rayreid.selection.features import Features
from rayreid.selection.pool_embedding import coordinates, embed_pool, principal_components, require_umap

KINDS = 4


@pytest.fixture(scope="module")
def kinds():
    """Kind of each of 300 images, and their features float32 (300, 16): the kinds lie far apart."""
    generator = np.random.default_rng(0)
    kind = generator.integers(0, KINDS, 300)
    features = np.eye(16)[kind] + 0.1 * generator.normal(size=(300, 16))
    return kind, (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def pool_of(features, shards=3, bad=()):
    """A pool in shards of interleaved rows, float16, some of whose images could not be decoded."""
    stored = features.astype(np.float16)
    stored[list(bad)] = np.nan
    parts = [np.arange(shard, len(stored), shards) for shard in range(shards)]
    keys = np.array([f"{row:04d}.jpg" for row in range(len(stored))], object)
    return Features(keys, lambda: iter([(rows, stored[rows]) for rows in parts]))


def test_images_of_a_kind_lie_together_and_the_map_is_the_same_again(kinds):
    kind, features = kinds
    places = coordinates(features, seed=3)
    assert places.shape == (300, 2) and places.dtype == np.float32 and np.isfinite(places).all()
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (kind[distances.argmin(axis=1)] == kind).mean() > 0.98
    assert np.array_equal(coordinates(features, seed=3), places)
    assert not np.array_equal(coordinates(features, seed=4), places)


def test_images_that_are_equal_have_places(kinds):
    _, features = kinds
    places = coordinates(np.concatenate([features[:20], np.repeat(features[:1], 30, axis=0)]), seed=0)
    assert np.isfinite(places).all()


@pytest.mark.parametrize("count", [1, 2, 4, 5, 10])
def test_few_images_have_places(kinds, count):
    _, features = kinds
    places = coordinates(features[:count], seed=0)
    assert places.shape == (count, 2) and np.isfinite(places).all()


def test_principal_components_are_the_largest_ones_and_have_a_sign():
    generator = np.random.default_rng(1)
    features = generator.normal(size=(50, 5)) * [1, 30, 2, 10, 1]
    places = principal_components(features)
    assert np.abs(places).max() == pytest.approx(10)
    for axis, column in ((0, 1), (1, 3)):
        assert np.corrcoef(places[:, axis], features[:, column])[0, 1] > 0.9
    assert np.array_equal(principal_components(np.ones((3, 1))), np.zeros((3, 2)))


def test_a_sample_does_not_depend_on_shards_and_leaves_out_undecodable_images(kinds):
    kind, features = kinds
    bad = [0, 5, 299]
    first, second = (embed_pool(pool_of(features, shards, bad), 120, seed=0) for shards in (1, 4))
    assert len(first.rows) == 120 and not set(bad) & set(first.rows.tolist())
    assert np.array_equal(first.rows, np.sort(first.rows))
    for name in ("rows", "places", "clusters", "cosines"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    sizes = np.bincount(first.clusters)
    assert len(sizes) == 11 and (np.diff(sizes) <= 0).all() and sizes.sum() == 120
    assert all(len(set(kind[first.rows[first.clusters == one]])) == 1 for one in range(11))
    assert (np.abs(first.cosines) <= 1 + 1e-5).all() and first.cosines.mean() > 0.9


def test_all_images_are_shown_if_there_are_fewer(kinds):
    _, features = kinds
    assert embed_pool(pool_of(features[:30]), 1000, seed=0).rows.tolist() == list(range(30))


def test_a_pool_without_features_is_refused(kinds):
    _, features = kinds
    with pytest.raises(UserError, match="no image of the pool has a feature"):
        embed_pool(pool_of(features[:6], bad=range(6)), 10, seed=0)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(pool_embedding, "find_spec", lambda name: None if name == "umap" else util.find_spec(name))
    with pytest.raises(
        UserError, match=r"needs the extra rayreid\[map\]: pip install umap-learn plotly; or .*--no-map"
    ):
        require_umap()
