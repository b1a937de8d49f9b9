import numpy as np
import pytest
from scipy.stats import t

from rayreid.errors import UserError
from rayreid.evaluation.comparison import align, compare_queries, compare_seeds


def drawn(seed, queries=400, gain=0.0, noise=0.05):
    rng = np.random.default_rng(seed)
    first = rng.uniform(0, 1, queries)
    return first, first + gain + noise * rng.standard_normal(queries)


def test_a_difference_smaller_than_the_spread_of_queries_is_found_because_it_is_paired():
    first, second = drawn(0, gain=0.02)
    found = compare_queries(first, second)
    assert found.significant and found.low < found.difference < found.high
    assert found.difference == pytest.approx((second - first).mean())
    shuffled = compare_queries(first, np.random.default_rng(1).permutation(second))
    assert not shuffled.significant  # the same two models, unpaired


def test_the_interval_is_that_of_the_mean():
    first, second = drawn(3, queries=1000, gain=0.01)
    gain = second - first
    half = 1.96 * gain.std() / np.sqrt(len(gain))
    found = compare_queries(first, second)
    assert found.low == pytest.approx(gain.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(gain.mean() + half, abs=0.1 * half)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    inside = 0
    for seed in range(60):
        found = compare_queries(*drawn(seed, queries=100, gain=0.03), confidence=0.8)
        inside += found.low <= 0.03 <= found.high
    assert 40 <= inside <= 56  # 48 expected


def test_order_of_models_turns_the_sign_and_seeds_repeat():
    first, second = drawn(5, gain=0.03)
    there, back = compare_queries(first, second), compare_queries(second, first)
    assert there.difference == -back.difference
    assert (there.better, there.worse) == (back.worse, back.better)
    assert compare_queries(first, second) == there


def test_uncounted_queries_are_left_out():
    first, second = drawn(6)
    first[:10] = second[:10] = np.nan
    found = compare_queries(first, second)
    assert found.queries == 390
    assert found.difference == pytest.approx(np.nanmean(second - first))


def test_equal_models_differ_by_nothing():
    first, _ = drawn(7)
    found = compare_queries(first, first)
    assert (found.difference, found.low, found.high, found.significant) == (0, 0, 0, False)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match=r"\(3,\) against \(4,\)"):
        compare_queries(np.zeros(3), np.zeros(4))
    with pytest.raises(UserError, match="1 queries were counted by one model only"):
        compare_queries([0.1, np.nan, 0.2], [0.1, 0.3, 0.2])
    with pytest.raises(UserError, match="1 counted queries"):
        compare_queries([0.1, np.nan], [0.1, np.nan])


def test_values_are_brought_into_one_order():
    one, other = align([["b", "a", "c"], ["c", "a", "b"]], [[2.0, 1.0, 3.0], [30.0, 10.0, 20.0]])
    np.testing.assert_array_equal(one, [1, 2, 3])
    np.testing.assert_array_equal(other, [10, 20, 30])
    with pytest.raises(UserError, match=r"same queries.*'d'"):
        align([["a", "b"], ["a", "d", "b"]], [[1, 2], [1, 2, 3]])


def kinds(seed, seeds=3, queries=300, gain=0.0, between=0.0, noise=0.05):
    """Two kinds of models: queries differ much, the pairs' gains by `between` from seed to seed, and by noise."""
    rng = np.random.default_rng(seed)
    first = np.tile(rng.uniform(0, 1, queries), (seeds, 1))
    shift = gain + between * rng.standard_normal((seeds, 1))
    return first, first + shift + noise * rng.standard_normal((seeds, queries))


def test_seeds_and_queries_both_widen_the_interval():
    alike, apart = (compare_seeds(*kinds(0, between=between)) for between in (0, 0.03))
    assert apart.high - apart.low > 2 * (alike.high - alike.low)
    one = compare_seeds(*kinds(0, seeds=1, between=0.03))  # with one seed the spread of training cannot be seen
    assert one.high - one.low < (apart.high - apart.low) / 2


def test_the_interval_over_seeds_and_queries_is_that_of_a_plain_loop():
    first, second = kinds(1, seeds=5, queries=60, gain=0.01, between=0.02)
    rng, gain = np.random.default_rng(9), second - first
    means = [gain[rng.integers(5, size=5)][:, rng.integers(60, size=60)].mean() for _ in range(9_999)]
    found = compare_seeds(first, second)
    low, high = np.percentile(means, [2.5, 97.5])
    assert found.difference == pytest.approx(gain.mean())
    assert found.low == pytest.approx(low, abs=0.03 * (high - low))
    assert found.high == pytest.approx(high, abs=0.03 * (high - low))


def test_with_few_seeds_the_interval_is_at_least_student_s():
    inside = 0
    for seed in range(40):
        first, second = kinds(seed, seeds=3, queries=40, gain=0.02, between=0.02)
        found = compare_seeds(first, second, confidence=0.8)
        inside += found.low <= 0.02 <= found.high
        low, high = t.interval(0.8, 2, *_mean_and_error((second - first).mean(axis=1)))
        assert found.low <= low + 1e-9
        assert found.high >= high - 1e-9
    assert inside >= 28  # 32 expected of Student's; the bootstrap alone covers some 20


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def test_one_seed_gives_the_interval_over_queries():
    first, second = drawn(3, queries=500, gain=0.01)
    one, other = compare_seeds([first], [second]), compare_queries(first, second)
    assert (one.difference, one.better, one.queries) == (pytest.approx(other.difference), other.better, other.queries)
    assert one.low == pytest.approx(other.low, abs=0.05 * (other.high - other.low))


def test_an_interval_over_many_seeds_covers_the_truth_about_as_often_as_it_says():
    inside = 0
    for seed in range(40):
        found = compare_seeds(*kinds(seed, seeds=12, queries=80, gain=0.02, between=0.02), confidence=0.8)
        inside += found.low <= 0.02 <= found.high
    assert 26 <= inside <= 38  # 32 expected


def test_queries_not_counted_by_any_seed_are_left_out_and_others_refused():
    first, second = kinds(2)
    first[:, :10] = second[:, :10] = np.nan
    assert compare_seeds(first, second).queries == 290
    first[1, 20] = np.nan
    with pytest.raises(UserError, match="1 queries were counted by one model only"):
        compare_seeds(first, second)
    with pytest.raises(UserError, match=r"\(2, 3\) against \(3, 3\)"):
        compare_seeds(np.zeros((2, 3)), np.zeros((3, 3)))
