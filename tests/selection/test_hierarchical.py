from collections import defaultdict
from itertools import zip_longest

import numpy as np
import pytest
import torch

from planted_features import in_parts, planted, unit
from rayreid.errors import UserError
from rayreid.selection.hierarchical import hierarchical_priority, level_sizes, nested_places
from rayreid.selection.strategies import cut

CPU = torch.device("cpu")


def nested(levels: int, images: int = 400, seed: int = 0) -> list[np.ndarray]:
    """Clusters of uneven size, as paths."""
    rng = np.random.default_rng(seed)
    paths = [np.minimum(rng.geometric(0.08, images), 27) - 1]
    for _ in range(levels - 1):
        parents = rng.permutation(28) % (3 + 2 * (levels - len(paths)))
        paths.append(parents[paths[-1]])
    return paths


def naive(paths: list[np.ndarray], hashes: np.ndarray, seed: int) -> np.ndarray:
    """Places by merging lists of rows, one level after the other."""
    rng = np.random.default_rng(seed)
    sequences: dict[int, list[int]] = defaultdict(list)
    for row in np.argsort(-hashes):
        sequences[paths[0][row]].append(row)
    for children, parents in zip(paths, [*paths[1:], np.zeros_like(paths[0])], strict=True):
        order = rng.permutation(children.max() + 1)
        families: dict[int, list[int]] = defaultdict(list)
        for child in sorted(sequences, key=lambda child: order[child]):
            families[parents[sequences[child][0]]].append(child)
        sequences = {
            parent: [
                row for turn in zip_longest(*(sequences[child] for child in mine)) for row in turn if row is not None
            ]
            for parent, mine in families.items()
        }
    places = np.empty(len(hashes), int)
    places[sequences[0]] = np.arange(len(hashes))
    return places


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_places_are_those_of_merged_lists(levels):
    paths, hashes = nested(levels), np.random.default_rng(1).random(400)
    places = nested_places(paths, hashes, seed=5)
    np.testing.assert_array_equal(places, naive(paths, hashes, 5))
    np.testing.assert_array_equal(np.sort(places), np.arange(400))


@pytest.mark.parametrize("count", [3, 20, 150, 399])
def test_every_cut_is_balanced_at_every_level(count):
    paths = nested(3)
    rows = np.flatnonzero(nested_places(paths, np.random.default_rng(1).random(400), seed=5) < count)
    for children, parents in zip(paths, [*paths[1:], np.zeros(400, int)], strict=True):
        taken, members = np.bincount(children[rows], minlength=28), np.bincount(children, minlength=28)
        for parent in np.unique(parents):
            mine = np.unique(children[parents == parent])
            most = taken[mine].max()
            assert (taken[mine] >= np.minimum(members[mine], most - 1)).all()


def test_a_rare_look_is_not_drowned():
    common, rare = planted(1, 380, 0.3, seed=0), planted(1, 20, 0.3, seed=7)
    features = np.concatenate([common, rare])
    pool = in_parts(features, 3, undecodable=(5,), shuffled=True)
    priority, facts = hierarchical_priority(pool, CPU, 0, [12, 2])
    assert facts == {"clusters_1": 12, "clusters_2": 2, "largest_share": pytest.approx(379 / 399)}
    assert np.flatnonzero(np.isnan(priority)).tolist() == [5]
    taken = cut(pool.keys, priority, 40)
    assert (taken >= 380).sum() == 20


def test_parts_and_threads_change_nothing():
    features = unit(planted(30, 10, 0.6).astype(float))
    once, facts = hierarchical_priority(in_parts(features), CPU, 3)
    assert facts["clusters_1"] == 45 and facts["clusters_2"] == 7
    again, _ = hierarchical_priority(in_parts(features, 9, shuffled=True), CPU, 3)
    np.testing.assert_array_equal(once, again)
    other, _ = hierarchical_priority(in_parts(features), CPU, 4)
    assert (once != other).any()


@pytest.mark.parametrize(
    ("images", "levels", "sizes"),
    [
        (1_000_000, 2, [10_000, 100]),
        (4_180_243, 2, [25_950, 161]),
        (16, 3, [8, 4, 2]),
        (1, 2, [1, 1]),
        (5, [9, 2], [5, 2]),
    ],
)
def test_sizes_of_levels(images, levels, sizes):
    assert level_sizes(images, levels) == sizes


@pytest.mark.parametrize("levels", [0, [], [10, 0], [10, 20]])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(UserError, match=r"^select\.levels must be numbers of clusters"):
        level_sizes(100, levels)
