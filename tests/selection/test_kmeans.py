import numpy as np
import pytest
import torch

from planted_features import in_parts, planted
from rayreid.selection.kmeans import clusters_of, sampled_centres, spherical_kmeans
from rayreid.selection.whole_directions import whole_directions

CPU = torch.device("cpu")


def test_centres_are_found_where_the_images_are():
    rng = np.random.default_rng(0)
    true = np.eye(8)[:4]
    points = np.repeat(true, 50, axis=0) + 0.05 * rng.standard_normal((200, 8))
    centres = spherical_kmeans(whole_directions(points.astype(np.float16), CPU), 4, seed=0, rounds=20)
    assert sorted((centres.whole.numpy() @ true.T).argmax(axis=1)) == [0, 1, 2, 3]
    np.testing.assert_allclose(centres.whole.norm(dim=1), 4000, rtol=1e-3)


def naive(points: np.ndarray, centres: np.ndarray, rounds: int) -> np.ndarray:
    for _ in range(rounds):
        clusters = (points @ centres.T).argmax(axis=1)
        centres = np.stack([points[clusters == cluster].sum(axis=0) for cluster in range(len(centres))])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return centres


def test_iterations_are_those_of_float64():
    features = planted(30, 10, 0.4)
    start = np.sort(np.random.default_rng(3).permutation(300)[:12])
    points = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    found = spherical_kmeans(whole_directions(features, CPU), 12, seed=3, rounds=4)
    np.testing.assert_allclose(found.whole * found.inverse[:, None], naive(points, points[start], 4), atol=2e-3)


def test_a_cluster_without_points_takes_the_farthest_one():
    features = np.eye(3, dtype=np.float16)[[0, 0, 0, 0, 0, 0, 1, 2]]
    for seed in range(4):
        centres = spherical_kmeans(whole_directions(features, CPU), 3, seed, rounds=4)
        assert len(np.unique(centres.whole, axis=0)) == 3


@pytest.mark.parametrize("parts", [2, 7])
def test_clusters_do_not_depend_on_parts(parts):
    features = planted(40, 5, 0.5)
    rows = np.arange(0, 200, 3)
    found = []
    for pool in (in_parts(features), in_parts(features, parts, shuffled=True)):
        centres = sampled_centres(pool, rows, 6, CPU, seed=0, sample=5, rounds=3)
        found.append(clusters_of(pool, rows, centres))
    np.testing.assert_array_equal(*found)
    assert len(found[0]) == len(rows) and len(np.unique(found[0])) > 3
