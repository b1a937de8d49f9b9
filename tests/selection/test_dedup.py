import numpy as np
import pytest
import torch

from planted_features import in_parts, planted, unit
from rayreid.selection import leaders
from rayreid.selection.dedup import dedup, few_of_each, near_duplicates, stated_order
from rayreid.selection.pieces import Pieces
from rayreid.selection.strategies import cut

CPU = torch.device("cpu")


def naive(features: np.ndarray, order: np.ndarray, similarity: float) -> np.ndarray:
    """Row of each image's leader, in float64, one image after the other."""
    points = features.astype(np.float64)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    leaders: list[int] = []
    found = np.empty(len(points), int)
    for row in order:
        cosines = points[leaders] @ points[row]
        found[row] = leaders[cosines.argmax()] if len(leaders) and cosines.max() >= similarity else row
        if found[row] == row:
            leaders.append(row)
    return found


def groups(pool, similarity=0.9, clusters=1, **options):
    count = len(pool.keys)
    options = {"copies": np.arange(count), "sizes": np.full(count, 128), **options}
    return near_duplicates(pool, CPU, 0, similarity=similarity, clusters=clusters, **options)


@pytest.mark.parametrize("block", [1, 13, 1024])
@pytest.mark.parametrize("spread", [0.2, 0.4])
def test_groups_are_those_of_one_image_after_the_other(monkeypatch, block, spread):
    monkeypatch.setattr(leaders, "_BLOCK", block)
    features = planted(40, 5, spread)
    sizes = np.random.default_rng(1).integers(1, 4, 200)
    found, facts = groups(in_parts(features), sizes=sizes)
    order = sorted(range(200), key=lambda row: (-sizes[row], row))
    np.testing.assert_array_equal(found, naive(features, np.array(order), 0.9))
    _, members = np.unique(found, return_counts=True)
    assert facts["groups"] == len(members) and facts["largest_group"] == members.max()
    assert facts["grouped"] == members[members > 1].sum() and facts["copies"] == 0 and facts["clusters"] == 1


def test_a_sequence_is_not_chained():
    angles = np.linspace(0, np.pi, 50)
    sequence = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    found, facts = groups(in_parts(sequence), similarity=0.95)
    assert 3 <= facts["groups"] <= 10
    cosines = (sequence.astype(float) * sequence[found].astype(float)).sum(axis=1)
    assert cosines.min() > 0.949


def test_duplicates_within_clusters_are_found():
    features = planted(60, 4, 0.05)
    found, facts = groups(in_parts(features), clusters="auto")
    np.testing.assert_array_equal(found, np.repeat(np.arange(0, 240, 4), 4))
    assert facts["clusters"] == 4 and facts["group_p50"] == facts["group_p99"] == 4


@pytest.mark.parametrize("centre", [False, True])
def test_parts_memory_and_threads_change_nothing(monkeypatch, centre):
    features = planted(50, 6, 0.45)
    options = {"clusters": 7, "similarity": 0.85, "centre": centre}
    once, facts = groups(in_parts(features), **options)
    assert 60 < facts["groups"] < 290
    monkeypatch.setattr(leaders, "_HELD", 40)
    monkeypatch.setattr(leaders, "_WORTH_A_PIECE", 40)
    threads = torch.get_num_threads()
    try:
        for number, parts in ((1, 3), (2, 11)):
            torch.set_num_threads(number)
            np.testing.assert_array_equal(groups(in_parts(features, parts, shuffled=True), **options)[0], once)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("at_once", [2, 5, 100])
def test_pieces_of_cells_change_nothing(monkeypatch, at_once):
    monkeypatch.setattr(leaders, "_WORTH_A_PIECE", 10)
    features, done = planted(50, 6, 0.45), []

    def each(function, pieces):
        done.extend(pieces)
        return [function(piece) for piece in reversed(pieces)][::-1]

    options = {"clusters": 7, "similarity": 0.85}
    once, _ = groups(in_parts(features), **options)
    found, _ = groups(in_parts(features, 3), work=Pieces(each, at_once), **options)
    np.testing.assert_array_equal(found, once)
    assert len(done) >= min(at_once, 7) and sum(len(counts) for _, counts in done) == 7  # a piece has whole cells
    assert sorted(np.concatenate([rows for rows, _ in done])) == list(range(300))


def test_what_is_common_to_all_images_is_subtracted():
    cone = np.zeros((1, 16))
    cone[0, 0] = 3
    features = unit(cone + planted(20, 2, 0.1).astype(float))
    assert groups(in_parts(features))[1]["groups"] < 5
    found, facts = groups(in_parts(features), centre=True)
    assert facts["groups"] == 20
    np.testing.assert_array_equal(found, np.repeat(np.arange(0, 40, 2), 2))


def test_identical_bytes_are_one_group_whatever_their_features():
    features = planted(4, 1, 0)
    features[2] = features[3]
    found, facts = groups(in_parts(features, undecodable=(1,)), copies=np.array([5, 9, 5, 7]), sizes=np.ones(4, int))
    assert found.tolist() == [0, -1, 0, 3]
    assert facts["copies"] == 1 and facts["groups"] == 2 and facts["grouped"] == 2


def test_the_largest_images_of_a_group_are_kept_and_groups_take_turns():
    keys = [f"{row}.jpg" for row in range(9)]
    found = np.array([0, 0, 0, 0, 4, 4, 6, -1, 0])
    sizes = np.array([1, 5, 5, 2, 1, 1, 1, 9, 9])
    copies = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])
    priority, facts = few_of_each(keys, found, copies, sizes, keep=2, seed=0)
    assert np.flatnonzero(~np.isnan(priority)).tolist() == [1, 4, 5, 6, 8]
    assert facts == {"removed": 3}
    assert cut(keys, priority, 3).tolist() == [4, 6, 8]
    copies[1] = 8
    priority, _ = few_of_each(keys, found, copies, sizes, keep=2, seed=0)
    assert np.flatnonzero(~np.isnan(priority)).tolist() == [2, 4, 5, 6, 8]
    priority, facts = few_of_each(keys, found, copies, sizes, keep=100, seed=0)
    assert np.flatnonzero(np.isnan(priority)).tolist() == [1, 7] and facts == {"removed": 1}


def test_the_strategy_keeps_some_of_each_group():
    features = planted(30, 4, 0.05)
    priority, facts, columns = dedup(in_parts(features), CPU, 0, np.arange(120), np.ones(120, int), 0.9, 2, clusters=5)
    kept = np.flatnonzero(~np.isnan(priority))
    np.testing.assert_array_equal(kept, np.concatenate([[row, row + 1] for row in range(0, 120, 4)]))
    assert facts["removed"] == 60 and facts["groups"] == 30
    np.testing.assert_array_equal(columns["group"], np.repeat(np.arange(0, 120, 4), 4))
    assert (cut([f"{row:04d}.jpg" for row in range(120)], priority, 30) % 4 == 0).all()


def test_the_order_is_by_size_then_by_key():
    assert stated_order(["b", "a", "ä", "c"], np.array([1, 1, 1, 2])).tolist() == [2, 1, 3, 0]


def test_a_threshold_of_1_finds_equal_features():
    features = planted(10, 1, 0)
    found, _ = groups(in_parts(np.concatenate([features, features])), similarity=1.0)
    np.testing.assert_array_equal(found, np.tile(np.arange(10), 2))


def test_the_spread_of_features_tells_whether_they_have_collapsed():
    alike = np.tile(planted(1, 1, 0), (60, 1))
    alike += np.random.default_rng(0).normal(0, 1e-4, alike.shape).astype(alike.dtype)
    _, collapsed = groups(in_parts(alike), centre=True)
    _, usual = groups(in_parts(planted(60, 1, 0)), centre=True)
    assert collapsed["spread"] < 0.005 < 0.5 < usual["spread"] <= 1
    assert "spread" not in groups(in_parts(alike))[1]
