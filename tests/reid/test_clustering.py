"""Pseudo labels against the published ones and DBSCAN on the dense matrix; their means, statistics and quality."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN

import naive_neighbours as naive
from rayreid.errors import UserError
from rayreid.neighbours.k_reciprocal import half_list
from rayreid.neighbours.knn import nearest
from rayreid.reid.clustering import AUTO_EPS, Clusters, cluster, cluster_means, label_quality
from rayreid.reid.pseudo_labels import Clustering


def named_by_first(labels):
    """Labels renamed by the order in which they appear; outliers stay −1."""
    names = {-1: -1}
    return [names.setdefault(label, len(names) - 1) for label in np.asarray(labels).tolist()]


def test_labels_match_published(golden):
    data = golden("jaccard.npz")
    meta = data.meta
    clusters = cluster(nearest(data["features"], meta["k1"]), meta["k1"], meta["k2"], meta["eps"], meta["min_samples"])
    assert named_by_first(clusters.labels) == named_by_first(data["dbscan_labels"])


@pytest.mark.parametrize("eps", [0.45, 0.6, 0.7])  # at 0.5 pairs lie that share two of three rows, up to rounding
@pytest.mark.parametrize("case", [naive.clustered, naive.tied])
def test_labels_match_dbscan_on_the_dense_matrix(case, eps):
    found = []
    for seed in range(6):
        features = case(seed, 150)
        encoding = naive.encoding(features, 10, half_list(10), 3)
        dense = naive.jaccard(encoding, encoding)
        expected = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit(np.maximum(dense, 0)).labels_
        clusters = cluster(nearest(features, 10), 10, 3, eps, 4)
        assert named_by_first(clusters.labels) == named_by_first(expected)
        assert clusters.sizes.tolist() == np.bincount(expected[expected >= 0]).tolist()
        found.append((len(clusters), (expected < 0).sum()))
    assert max(number for number, _ in found) > 2  # the cases are of some interest
    assert max(outliers for _, outliers in found) > 0


@pytest.mark.parametrize("seed", range(4))
def test_without_eps_it_is_the_one_with_the_most_clusters(seed):
    features = naive.clustered(seed, 150)
    neighbours = nearest(features, 10)
    by_eps = {eps: cluster(neighbours, 10, 3, eps, 4) for eps in AUTO_EPS}
    best = max(AUTO_EPS, key=lambda eps: (len(by_eps[eps]), eps))
    chosen = cluster(neighbours, 10, 3, None, 4)
    assert chosen.eps == best
    assert named_by_first(chosen.labels) == named_by_first(by_eps[best].labels)
    assert chosen.sizes.tolist() == by_eps[best].sizes.tolist()
    assert len({len(found) for found in by_eps.values()}) > 2  # the values differ in what they give
    logged = [Clustering(10, 3, eps, 4)(torch.from_numpy(features))[1] for eps in (None, 0.6)]
    assert [row.get("eps") for row in logged] == [best, None]


def test_no_cluster_one_cluster_and_fewer_images_than_a_list():
    scattered = np.eye(12, 12, dtype=np.float32)
    none = cluster(nearest(scattered, 3), 3, 1, 0.1, 4)
    assert (len(none), set(none.labels)) == (0, {-1})
    assert none.statistics() == {
        "clusters": 0,
        "outliers": 12,
        "images_used": 0,
        "cluster_size_min": 0,
        "cluster_size_median": 0,
        "cluster_size_max": 0,
    }
    assert cluster_means(torch.from_numpy(scattered), none).shape == (0, 12)
    one = cluster(nearest(np.ones((10, 4), np.float32), 30), 30, 6, 0.6, 4)
    assert (len(one), one.sizes.tolist(), set(one.labels)) == (1, [10], {0})


def test_means_and_statistics():
    clusters = Clusters(np.array([1, -1, 0, 1, 1, 0]), np.array([2, 3]))
    features = torch.arange(12, dtype=torch.float32).view(6, 2)
    np.testing.assert_allclose(cluster_means(features, clusters), [[7, 8], [14 / 3, 17 / 3]], rtol=1e-6)
    assert clusters.statistics() == {
        "clusters": 2,
        "outliers": 1,
        "images_used": 5,
        "cluster_size_min": 2,
        "cluster_size_median": 2.5,
        "cluster_size_max": 3,
    }


def test_quality_counts_pairs_and_lets_outliers_stand_alone():
    labels = np.array([0, 0, 0, 1, 1, -1, -1, 2, 2, 0])
    pids = np.array([5, 5, 7, 7, 7, 8, 8, 9, 9, -1])
    quality = label_quality(Clusters(labels, np.bincount(labels[labels >= 0])), pids)
    pairs = list(combinations(range(9), 2))
    alike = {(a, b) for a, b in pairs if labels[a] == labels[b] >= 0}
    true = {(a, b) for a, b in pairs if pids[a] == pids[b]}
    precision, recall = len(alike & true) / len(alike), len(alike & true) / len(true)
    assert quality["pair_precision"] == pytest.approx(precision)
    assert quality["pair_recall"] == pytest.approx(recall)
    assert quality["pair_f"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert 0 < quality["ari"] < 1
    assert 0 < quality["nmi"] < 1


def test_quality_of_right_labels_of_none_and_of_nothing_known():
    pids = np.array([3, 3, 4, 4])
    right = label_quality(Clusters(np.array([1, 1, 0, 0]), np.array([2, 2])), pids)
    assert right == {"ari": 1, "nmi": 1, "pair_precision": 1, "pair_recall": 1, "pair_f": 1}
    none = label_quality(Clusters(np.full(4, -1), np.array([], np.int64)), pids)
    assert (none["pair_precision"], none["pair_recall"], none["pair_f"]) == (0, 0, 0)
    assert label_quality(Clusters(np.zeros(4, np.int64), np.array([4])), np.full(4, -1)) == {}


def test_numbers_out_of_range_are_refused():
    neighbours = nearest(naive.clustered(0, 40), 10)
    for eps in (0.0, 1.0, -1.0, np.nan):
        with pytest.raises(UserError, match="eps"):
            cluster(neighbours, 10, 6, eps)
    for k1, k2 in [(0, 0), (5, 6), (10, 0)]:
        with pytest.raises(UserError, match="1 <= k2 <= k1"):
            cluster(neighbours, k1, k2)
    with pytest.raises(UserError, match="min_samples 0"):
        cluster(neighbours, 10, 6, 0.6, 0)
