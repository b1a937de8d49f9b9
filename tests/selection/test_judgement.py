"""The figures of kept images, compared with those that a few lines over all pairs give."""

import math

import numpy as np
import pytest
import torch

from rayreid.selection import judgement, steps
from rayreid.selection.coverage import nearest_kept
from rayreid.selection.diversity import effective_rank, moments, normalised_entropy
from rayreid.selection.features import Features, mean_feature, usable_rows
from rayreid.selection.judgement import NEAR, judge
from rayreid.selection.steps import steps_of

CPU = torch.device("cpu")
SIZES = (30, 75, 150)
POOL = 300
BROKEN = (7, 100)
"""Rows without features, as of images that could not be decoded."""


def features(count: int, seed: int, broken=(), parts: int = 3) -> tuple[Features, np.ndarray]:
    """Features around 20 centres with near-duplicates, dealt out to interleaved shards; and all of them at once."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, 16))
    units = centres[rng.integers(0, 20, count)] + rng.uniform(0.05, 1.0, (count, 1)) * rng.standard_normal((count, 16))
    units = (units / np.linalg.norm(units, axis=1, keepdims=True)).astype(np.float16)
    units[list(broken)] = np.nan
    shards = [np.arange(first, count, parts) for first in range(parts)]
    keys = [f"{number:04d}.jpg" for number in range(count)]
    return Features(keys, lambda: iter([(rows, units[rows]) for rows in shards])), units


@pytest.fixture
def pool() -> tuple[Features, np.ndarray]:
    return features(POOL, 0, BROKEN)


def priorities(pool: Features) -> np.ndarray:
    """Two selections: by row, without the first 20 rows; and at random."""
    rising = np.arange(POOL, dtype=float)
    rising[:20] = np.nan
    rising[list(BROKEN)] = np.nan
    return np.stack([rising, np.random.default_rng(1).random(POOL)])


def kept(one: np.ndarray, size: int) -> np.ndarray:
    """Rows of the highest priorities that have features."""
    order = [row for row in np.argsort(-one, kind="stable") if not np.isnan(one[row])][:size]
    return np.array(sorted(set(order) - set(BROKEN)))


def directions(units: np.ndarray, mean: np.ndarray) -> np.ndarray:
    moved = units.astype(np.float64) - mean
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [16, 2048])
def test_the_figures_are_those_of_all_pairs(monkeypatch, pool, block):
    monkeypatch.setattr(steps, "_BLOCK", block)
    images, units = pool
    target, theirs = features(40, 5, broken=[3], parts=2)
    theirs = np.delete(theirs, 3, axis=0)
    chosen = priorities(images)
    found = judge(images, [target], [steps_of(images.keys, one, SIZES) for one in chosen], len(SIZES), CPU, seed=0)
    mean = np.nanmean(units.astype(np.float64), axis=0)
    pooled, theirs = directions(units, mean), directions(theirs, mean)
    clusters = judgement._clusters(images, usable_rows(images), mean_feature(images), CPU, 0)
    count = round(math.sqrt(POOL - len(BROKEN)))
    assert set(clusters) == {-1, *range(count)} and sorted(np.flatnonzero(clusters < 0)) == list(BROKEN)
    for one, figures in zip(chosen, found, strict=True):
        for size, shown in zip(SIZES, figures, strict=True):
            rows = kept(one, size)
            assert shown.images == len(rows)
            nearest = (theirs @ pooled[rows].T).max(axis=1)
            expected = (nearest.mean(), np.median(nearest), np.percentile(nearest, 10))
            actual = (shown.coverage_mean, shown.coverage_median, shown.coverage_p10)
            np.testing.assert_allclose(actual, expected, atol=1e-5)
            among = pooled[rows] @ pooled[rows].T
            np.fill_diagonal(among, -1)
            assert shown.near_duplicates == pytest.approx((among.max(axis=1) >= NEAR).mean())
            values = np.linalg.eigvalsh(np.cov(units[rows].astype(np.float64).T, bias=True))
            shares = values[values > 0] / values.sum()
            assert shown.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)
            sizes = np.array([(clusters[rows] == cluster).sum() for cluster in range(count)])
            assert shown.cluster_entropy == pytest.approx(normalised_entropy(sizes))
    assert 0 < found[0][2].near_duplicates < 1  # else the comparison above would say little


def test_a_larger_cut_covers_the_target_no_worse(pool):
    images, _ = pool
    target, _ = features(40, 5)
    chosen = [steps_of(images.keys, one, SIZES) for one in priorities(images)]
    for figures in judge(images, [target], chosen, len(SIZES), CPU, seed=0):
        means = [one.coverage_mean for one in figures]
        assert means == sorted(means) and means[0] < means[-1]


def test_the_division_into_shards_changes_nothing(pool):
    chosen = [steps_of(pool[0].keys, one, SIZES) for one in priorities(pool[0])]
    target, _ = features(40, 5)
    whole, _ = features(POOL, 0, BROKEN, parts=1)
    for first, second in zip(
        judge(pool[0], [target], chosen, 3, CPU, 0), judge(whole, [target], chosen, 3, CPU, 0), strict=True
    ):
        for one, other in zip(first, second, strict=True):
            np.testing.assert_allclose(list(vars(one).values()), list(vars(other).values()), atol=1e-5)


def test_a_sample_of_the_kept_images_is_compared_with_all_of_them(monkeypatch, pool):
    images, _ = pool
    chosen = [steps_of(images.keys, one, SIZES) for one in priorities(images)]
    exact = judge(images, [], chosen, 3, CPU, 0)[1][2].near_duplicates
    monkeypatch.setattr(judgement, "SAMPLE", 200)
    sampled = judge(images, [], chosen, 3, CPU, 0)[1][2].near_duplicates
    assert sampled != exact and sampled == pytest.approx(exact, abs=0.1)


def test_without_target_images_there_is_no_coverage(pool):
    images, _ = pool
    (figures,) = judge(images, [], [steps_of(images.keys, priorities(images)[1], SIZES)], 3, CPU, 0)
    assert all(math.isnan(one.coverage_mean) and math.isnan(one.coverage_p10) for one in figures)
    assert all(one.effective_rank > 1 for one in figures)


def test_an_image_is_not_its_own_neighbour():
    units = np.eye(4, dtype=np.float16)[[0, 0, 1, 2]]
    pool = Features(list("abcd"), lambda: iter([(np.arange(4), units)]))
    first = np.array([[0, 1, 0, 2]], np.int8)  # a and c at once, b with the second cut, d never
    found = nearest_kept(units, pool, first, 2, CPU, own=np.arange(4))
    np.testing.assert_array_equal(found[0, 0], [0, 1, 0, 0])
    np.testing.assert_array_equal(found[0, 1], [1, 1, 0, 0])
    alone = nearest_kept(units[:1], pool, np.array([[0, 2, 2, 2]], np.int8), 2, CPU, own=np.array([0]))
    assert np.isneginf(alone).all()


def test_what_all_images_share_does_not_count(pool):
    images, units = pool
    chosen = [steps_of(images.keys, one, SIZES) for one in priorities(images)]
    shared = np.concatenate([np.full((POOL, 1), 3.0), units.astype(np.float64)], axis=1)
    shared = (shared / np.linalg.norm(shared, axis=1, keepdims=True)).astype(np.float16)
    alike = Features(images.keys, lambda: iter([(np.arange(POOL), shared)]))
    for one, other in zip(judge(images, [], chosen, 3, CPU, 0)[1], judge(alike, [], chosen, 3, CPU, 0)[1], strict=True):
        assert other.near_duplicates == pytest.approx(one.near_duplicates, abs=0.02)


def test_steps_are_the_first_cut_that_keeps_an_image():
    keys = list("abcde")
    priority = np.array([0.5, np.nan, 0.9, 0.5, 0.1])
    np.testing.assert_array_equal(steps_of(keys, priority, (1, 2, 4)), [1, 3, 0, 2, 2])


def test_the_effective_rank_counts_directions():
    assert effective_rank(np.eye(6)) == pytest.approx(6)
    assert effective_rank(np.diag([3.0, 0, 0])) == pytest.approx(1)
    assert math.isnan(effective_rank(np.zeros((3, 3))))


def test_the_entropy_of_clusters_is_relative_to_all_of_them():
    assert normalised_entropy(np.array([5, 5, 5, 5])) == pytest.approx(1)
    assert normalised_entropy(np.array([8, 8, 0, 0])) == pytest.approx(0.5)
    assert normalised_entropy(np.array([9, 0, 0])) == 0
    assert math.isnan(normalised_entropy(np.array([4]))) and math.isnan(normalised_entropy(np.zeros(3, int)))


def test_the_covariance_of_a_cut_is_that_of_its_images(pool):
    images, units = pool
    chosen = priorities(images)
    counts, covariances = moments(images, np.stack([steps_of(images.keys, one, SIZES) for one in chosen]), 3, CPU)
    for number, size in enumerate(SIZES):
        rows = kept(chosen[1], size)
        assert counts[1, number] == len(rows)
        expected = np.cov(units[rows].astype(np.float64).T, bias=True)
        np.testing.assert_allclose(covariances[1][number], expected, atol=1e-6)
