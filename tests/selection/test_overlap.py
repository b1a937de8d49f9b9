import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from rayreid.selection.overlap import jaccard, rank_correlation

NAN = float("nan")


def test_rank_correlation_is_spearman_s_over_what_both_rank():
    rng = np.random.default_rng(0)
    first = np.round(rng.standard_normal(300), 1)  # with ties
    second = first + rng.standard_normal(300)
    first[::7], second[::11] = NAN, NAN
    both = np.isfinite(first) & np.isfinite(second)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first[both], second[both]).statistic)
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)


@pytest.mark.parametrize("second", [[1.0, 1.0, 1.0], [NAN, NAN, NAN]])
def test_where_there_is_no_order_there_is_no_correlation(second):
    assert math.isnan(rank_correlation(np.arange(3.0), np.array(second)))


def test_jaccard_is_shared_over_either():
    assert jaccard(np.array([1, 2, 3]), np.array([2, 3, 4, 5])) == 2 / 5
    assert jaccard(np.array([1]), np.array([2])) == 0
    assert jaccard(np.array([1, 2]), np.array([2, 1])) == 1
    assert jaccard(np.zeros(0, int), np.zeros(0, int)) == 1
