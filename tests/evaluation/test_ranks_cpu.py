"""Ranks of true matches against a stable full sort."""

import numpy as np
import pytest

from rayreid.evaluation import ranks_cpu


def expected_ranks(row, matches, passed):
    valid = np.setdiff1d(np.arange(len(row)), passed)
    ranking = valid[np.argsort(-row[valid], kind="stable")]
    return np.flatnonzero(np.isin(ranking, matches)) + 1


def random_row(rng, size, matches, passed, values):
    """Scores of which many are equal, with `values` different ones; true matches and images passed over."""
    row = (rng.integers(-values, values, size) / np.float32(values)).astype(np.float32)
    chosen = rng.permutation(size)[: matches + passed]
    return row, np.sort(chosen[:matches]), np.sort(chosen[matches:])


@pytest.mark.parametrize("way", [ranks_cpu.by_counting, ranks_cpu.by_bisection])
@pytest.mark.parametrize("size", [40, ranks_cpu.CHUNK, 2 * ranks_cpu.CHUNK + 100])
@pytest.mark.parametrize("values", [2, 30, 10**6])
def test_both_ways_match_a_stable_sort(way, size, values):
    rng = np.random.default_rng(size + values)
    for matches, passed in ((1, 0), (1, 5), (6, 0), (9, 11), (28, 12)):
        row, true, other = random_row(rng, size, matches, passed, values)
        before = row.copy()
        np.testing.assert_array_equal(way(row, true, other), expected_ranks(row, true, other))
        np.testing.assert_array_equal(row, before)


@pytest.mark.parametrize("matches", [600, ranks_cpu.MANY - 1, ranks_cpu.MANY])
def test_many_matches(matches):
    row, true, other = random_row(np.random.default_rng(0), 1500, matches, 50, 9)
    np.testing.assert_array_equal(ranks_cpu.true_ranks(row, true, other), expected_ranks(row, true, other))


def test_every_image_a_match():
    row = np.zeros(300, np.float32)
    np.testing.assert_array_equal(ranks_cpu.true_ranks(row, np.arange(300), np.arange(0)), np.arange(1, 301))
