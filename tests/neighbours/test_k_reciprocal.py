"""Sparse k-reciprocal rows and Jaccard distances against dense matrices and sets."""

import numpy as np
import pytest
from scipy import sparse

import naive_neighbours as naive
from rayreid.errors import UserError
from rayreid.neighbours import k_reciprocal
from rayreid.neighbours.k_reciprocal import BELOW_ONE, encode, half_list, jaccard_distances
from rayreid.neighbours.knn import Neighbours, nearest


def as_dense(distances):
    """Absent pairs at distance 1; zeros that are stored stay zeros."""
    dense, entries = np.ones(distances.shape), distances.tocoo()
    dense[entries.row, entries.col] = entries.data
    return dense


def test_distances_match_published(golden):
    data = golden("jaccard.npz")
    k1, k2 = data.meta["k1"], data.meta["k2"]
    encoding = encode(nearest(data["features"], k1), k1, half_list(k1), k2)
    distances = jaccard_distances(encoding, encoding.tocsc(), 0.95)
    near = data["jaccard"] < 0.95
    dense = as_dense(distances)
    np.testing.assert_allclose(dense[near], data["jaccard"][near], atol=1e-4)
    assert (dense[~near] > 0.95 - 1e-4).all()


@pytest.mark.parametrize(
    ("count", "k1", "k2"), [(120, 20, 6), (120, 30, 1), (60, 7, 3), (9, 20, 6), (1, 20, 6), (40, 1, 1)]
)
@pytest.mark.parametrize("case", [naive.clustered, naive.tied])
def test_matches_naive(case, count, k1, k2, monkeypatch):
    monkeypatch.setattr(k_reciprocal, "ENTRIES", 2_000)  # several blocks
    monkeypatch.setattr(k_reciprocal, "BLOCK", 16)
    for seed in range(4):
        features = case(seed, count)
        for scaled in (False, True):
            if scaled and count == 1:
                continue
            neighbours = nearest(features, k1, farthest=True)
            scale = 1 / (2 - 2 * neighbours.least) if scaled else None
            encoding = encode(neighbours, k1, half_list(k1), k2, scale)
            expected = naive.encoding(features, k1, half_list(k1), k2, scaled)
            np.testing.assert_allclose(encoding.toarray(), expected, atol=1e-6)
            assert (encoding.toarray() > 0).sum() == encoding.nnz
            np.testing.assert_allclose(
                as_dense(jaccard_distances(encoding, encoding.tocsc(), BELOW_ONE)),
                naive.jaccard(expected, expected),
                atol=1e-5,
            )


@pytest.mark.parametrize("within", [0.0, 0.3, 0.6, 0.95])
def test_only_distances_within_reach_are_stored(within):
    features = naive.tied(0, 200)
    encoding = encode(nearest(features, 20), 20, half_list(20), 6)
    whole = as_dense(jaccard_distances(encoding, encoding.tocsc(), BELOW_ONE))
    part = jaccard_distances(encoding, encoding.tocsc(), within)
    assert part.nnz == (whole <= np.float32(within)).sum() < whole.size
    np.testing.assert_array_equal(as_dense(part), np.where(whole <= np.float32(within), whole, 1))
    assert part.diagonal().max() <= 1e-6


def test_rows_against_other_rows():
    features = naive.clustered(1, 90)
    encoding = encode(nearest(features, 15), 15, half_list(15), 4)
    distances = jaccard_distances(encoding[:20], encoding[20:].tocsc(), BELOW_ONE)
    dense = naive.jaccard(encoding.toarray(), encoding.toarray())[:20, 20:]
    assert distances.shape == (20, 70)
    np.testing.assert_allclose(as_dense(distances), dense, atol=1e-5)


def test_points_that_repeat_lie_at_distance_zero():
    features = np.repeat(naive.clustered(0, 30, noise=2.0), 2, axis=0)
    encoding = encode(nearest(features, 10), 10, half_list(10), 1)
    distances = as_dense(jaccard_distances(encoding, encoding.tocsc(), 0.5))
    assert distances[::2, 1::2].diagonal().max() < 0.5
    assert distances.min() >= 0


def test_lists_with_missing_neighbours_as_of_an_approximate_search():
    features = naive.clustered(3, 60)
    full = nearest(features, 12)
    rows = full.rows.copy()
    rows[::3, 5:] = -1
    rows[4, 1:] = -1
    cut = Neighbours(full.features, rows, full.similarities, None, 0.9)
    encoding = encode(cut, 12, half_list(12), 6)
    np.testing.assert_allclose(encoding.sum(axis=1), 1, atol=1e-5)
    assert encoding[[4]].nnz >= 1


def test_half_lists_round_halves_to_even():
    assert [half_list(k) for k in (1, 2, 3, 5, 7, 20, 30)] == [1, 2, 3, 3, 5, 11, 16]


def test_the_share_of_a_half_list_is_compared_exactly():
    for length in range(1, 500):
        for shared in range(length + 1):
            assert (3 * shared > 2 * length) == (shared > 2 / 3 * length)


def test_numbers_out_of_range_are_refused():
    neighbours = nearest(naive.clustered(0, 30), 10)
    for full, half, k2 in [(0, 1, 0), (10, 6, 0), (10, 6, 11), (10, 0, 3)]:
        with pytest.raises(UserError, match="1 <= k2 <= k1"):
            encode(neighbours, full, half, k2)
    with pytest.raises(ValueError, match="lists of 10 neighbours where 11 are needed"):
        encode(neighbours, 11, 6, 3)
    encoding = encode(neighbours, 10, 6, 3)
    for within in (-0.1, 1.0, np.nan):
        with pytest.raises(UserError, match="out of range"):
            jaccard_distances(encoding, encoding.tocsc(), within)


def test_collapsed_features_end_with_a_message_before_all_pairs_are_formed():
    same = sparse.csr_array(np.ones((50, 1), np.float32))
    assert jaccard_distances(same, same.tocsc(), 0.5, most=50).nnz == 2500
    with pytest.raises(UserError, match=r"more than 49 images on average .* collapsed"):
        jaccard_distances(same, same.tocsc(), 0.5, most=49)
