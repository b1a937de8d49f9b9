import sys

import numpy as np
import pytest

from rayreid.errors import UserError
from rayreid.selection.clusters import cluster_count, even_priority, find_centres
from rayreid.selection.strategies import cut, random_priority

KEYS = [f"{number:04d}.jpg" for number in range(600)]


def test_every_cut_takes_from_all_clusters_evenly_as_far_as_they_reach():
    clusters = np.repeat([0, 1, 2], [400, 150, 50])[np.random.default_rng(0).permutation(600)]
    priority = even_priority(KEYS, clusters, seed=0)
    smaller: set[int] = set()
    for count in (1, 2, 3, 30, 151, 200, 400, 600):
        rows = cut(KEYS, priority, count)
        taken = np.bincount(clusters[rows], minlength=3)
        full = np.minimum(taken.max(), [400, 150, 50])
        assert taken.sum() == count and (full - taken).max() <= 1
        assert smaller <= set(rows.tolist())
        smaller = set(rows.tolist())


def test_the_order_within_a_cluster_is_the_seed_s_and_the_key_s():
    clusters = np.arange(600) % 5
    first = even_priority(KEYS, clusters, seed=0)
    assert len(set(first.tolist())) == 600
    shuffled = np.random.default_rng(1).permutation(600)
    again = even_priority([KEYS[row] for row in shuffled], clusters[shuffled], seed=0)
    np.testing.assert_array_equal(again, first[shuffled])
    assert abs(np.corrcoef(first, random_priority(KEYS, seed=0))[0, 1]) < 0.2
    other = even_priority(KEYS, clusters, seed=1)
    assert len(np.intersect1d(cut(KEYS, first, 100), cut(KEYS, other, 100))) < 50


def test_what_belongs_to_no_cluster_is_never_selected():
    priority = even_priority(KEYS[:4], np.array([0, -1, 1, -1]), seed=0)
    assert np.isnan(priority).tolist() == [False, True, False, True]


def test_centres_are_found_where_the_images_are():
    rng = np.random.default_rng(0)
    true = np.eye(8, dtype=np.float32)[:4]
    points = np.repeat(true, 50, axis=0) + 0.05 * rng.standard_normal((200, 8)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    centres = find_centres(points, 4, seed=0)
    assert sorted((centres @ true.T).argmax(axis=1)) == [0, 1, 2, 3]
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(find_centres(points, 4, seed=0), centres)


@pytest.mark.parametrize(
    ("images", "wanted", "expected"), [(10_000, "auto", 100), (2, "auto", 1), (10, 64, 10), (100, 7, 7)]
)
def test_how_many_clusters(images, wanted, expected):
    assert cluster_count(images, wanted) == expected


def test_without_faiss_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"needs the extra rayreid\[faiss\]: pip install faiss-cpu; or"):
        find_centres(np.eye(4, dtype=np.float32), 2, 0)
