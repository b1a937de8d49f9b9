"""Neighbour lists against a dense stable sort, for every engine."""

import builtins

import numpy as np
import pytest
import torch

import naive_neighbours as naive
from rayreid.errors import UserError
from rayreid.neighbours import knn
from rayreid.neighbours.knn import nearest


def assert_right(found, features, k):
    rows, similarities = naive.lists(features, k)
    np.testing.assert_array_equal(found.rows, rows)
    true = np.take_along_axis(similarities, rows, 1)
    np.testing.assert_allclose(found.similarities, true, atol=1e-6)
    assert (found.rows.dtype, found.similarities.dtype) == (np.int32, np.float32)
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("tile", [1, 7, 100, 2048])
@pytest.mark.parametrize("case", [naive.clustered, naive.tied])
@pytest.mark.parametrize("threads", [1, 3])
def test_exact_on_the_cpu(case, tile, threads, monkeypatch):
    monkeypatch.setattr(knn, "TILE", tile)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for seed, (count, k) in enumerate([(350, 20), (40, 1), (40, 2), (30, 30)]):
            features = case(seed, count if tile > 1 else 40)
            found = nearest(features, k, farthest=True)
            assert_right(found, features, k)
            np.testing.assert_allclose(found.least, naive.lists(features, k)[1].min(axis=1), atol=1e-6)
    finally:
        torch.set_num_threads(before)


def test_the_case_has_ties_at_the_end_of_lists():
    features = naive.tied(0, 350)
    ranks, similarities = naive.lists(features, 21)
    end = np.take_along_axis(similarities, ranks, 1)[:, -2:]
    assert (end[:, 0] == end[:, 1]).mean() > 0.5


@pytest.mark.parametrize("block", [1, 1000, 2**27])
def test_exact_in_blocks_as_on_a_device(block, monkeypatch):
    monkeypatch.setattr(knn, "BLOCK_ENTRIES", block)
    monkeypatch.setattr(knn, "_by_tiles", in_order(knn._by_blocks))
    features = naive.clustered(0, 200)
    found = nearest(features, 15, farthest=True)
    assert_right(found, features, 15)
    np.testing.assert_allclose(found.least, naive.lists(features, 15)[1].min(axis=1), atol=1e-6)


def in_order(search):
    def ordered(points, k):
        similarities, rows, least = search(points, k)
        return *knn._itself_first(similarities, rows), least

    return ordered


def test_faiss_finds_the_same():
    pytest.importorskip("faiss")
    features = naive.clustered(0, 300)
    assert_right(nearest(features, 20, "faiss"), features, 20)


def test_the_approximate_search_tells_its_recall():
    pytest.importorskip("faiss")
    features = naive.clustered(0, 3000, dim=16, ids=40)
    found = nearest(features, 10, "approximate")
    true = naive.lists(features, 10)[0]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.rows, true, strict=True)])
    assert 0.5 < found.recall <= 1
    assert found.recall == pytest.approx(recall, abs=0.1)
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(3000))
    assert nearest(features, 10).recall == 1


def test_a_short_list_of_the_approximate_search_ends_with_none(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(knn, "PROBED", 1)
    monkeypatch.setattr(knn, "POINTS_PER_CELL", 5)
    found = nearest(naive.clustered(0, 400, noise=0.05), 100, "approximate")
    short = (found.rows < 0).any(axis=1)
    assert short.any()
    assert found.recall < 1
    assert (np.diff((found.rows < 0).astype(int), axis=1) >= 0).all()


def test_a_point_is_first_in_its_list_among_more_equals_than_it_holds():
    features = np.repeat(np.eye(2, 4, dtype=np.float32), 10, axis=0)
    for engine in ("torch", "faiss"):
        if engine == "faiss":
            pytest.importorskip("faiss")
        rows = nearest(features, 4, engine).rows
        np.testing.assert_array_equal(rows[:, 0], np.arange(20))
        assert all(len(set(row)) == 4 for row in rows.tolist())
        assert (rows // 10 == np.arange(20)[:, None] // 10).all()
    np.testing.assert_array_equal(nearest(features, 4).rows[8], [8, 0, 1, 2])


def test_lists_hold_all_points_where_there_are_fewer():
    features = naive.clustered(0, 5)
    assert_right(nearest(features, 30), features, 5)
    assert nearest(features[:1], 30).rows.tolist() == [[0]]


def test_length_and_type_of_the_features_make_no_difference():
    features = naive.clustered(0, 50)
    expected = nearest(features, 10).rows
    for other in (features * 100, features.astype(np.float64), torch.from_numpy(features), features[:, ::-1]):
        np.testing.assert_array_equal(
            nearest(other.copy() if isinstance(other, np.ndarray) else other, 10).rows, expected
        )


def test_a_search_that_returns_wrong_neighbours_is_found_out(monkeypatch):
    features = naive.clustered(0, 200)
    right = nearest(features, 10)
    shifted = np.roll(right.rows, 1, axis=0)  # lists of other points, with the similarities of theirs
    monkeypatch.setattr(knn, "_by_faiss", lambda *_: (np.roll(right.similarities, 1, axis=0), shifted))
    with pytest.raises(UserError, match="wrong neighbours for 64 of 64 points"):
        nearest(features, 10, "faiss")
    with pytest.raises(UserError, match="wrong neighbours"):
        nearest(features, 10, "approximate")


def test_a_search_that_misses_neighbours_is_found_out_unless_approximate(monkeypatch):
    features = naive.clustered(0, 200)
    more = nearest(features, 11)
    missing = [0, *range(2, 11)]
    monkeypatch.setattr(knn, "_by_faiss", lambda *_: (more.similarities[:, missing], more.rows[:, missing]))
    with pytest.raises(UserError, match="wrong neighbours"):
        nearest(features, 10, "faiss")
    assert nearest(features, 10, "approximate").recall == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_features_without_a_direction_are_refused(bad):
    features = naive.clustered(0, 10)
    features[3] = bad
    with pytest.raises(UserError, match=r"1 of 10 features .* row 3"):
        nearest(features, 5)


def test_refusals_say_what_is_wrong(monkeypatch):
    features = naive.clustered(0, 10)
    for shape in [(0, 4), (4,), (4, 0)]:
        with pytest.raises(UserError, match="images, dimensions"):
            nearest(np.ones(shape, np.float32), 5)
    with pytest.raises(UserError, match="list of 0 neighbours"):
        nearest(features, 0)
    with pytest.raises(UserError, match="choose one of torch, faiss, approximate"):
        nearest(features, 5, "annoy")
    with pytest.raises(ValueError, match="farthest"):
        nearest(features, 5, "faiss", farthest=True)
    real = builtins.__import__

    def without_faiss(name, *rest):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(UserError, match=r"install it again, or do without it: adapt\.search=torch"):
        nearest(features, 5, "faiss")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [naive.clustered, naive.tied])
def test_exact_on_a_device(case):
    features = case(0, 350)
    found = nearest(torch.from_numpy(features).cuda(), 20, farthest=True)
    rows, similarities = naive.lists(features, 20)
    np.testing.assert_allclose(found.similarities, np.take_along_axis(similarities, rows, 1), atol=1e-6)
    np.testing.assert_allclose(found.least, similarities.min(axis=1), atol=1e-6)
