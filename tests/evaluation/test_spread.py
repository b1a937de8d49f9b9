import math

import pytest
import torch

from rayreid.evaluation.spread import effective_rank, mean_length


def test_equal_features_have_a_mean_of_length_one_and_rank_one():
    features = torch.tensor([[3.0, 4.0, 0.0]]).repeat(7, 1) * torch.arange(1.0, 8)[:, None]
    assert mean_length(features) == pytest.approx(1, abs=1e-6)
    assert effective_rank(features) == pytest.approx(1, abs=1e-3)


def test_opposite_features_cancel_out():
    assert mean_length(torch.tensor([[1.0, 2.0], [-2.0, -4.0]])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (50, 8), (8, 50)])
def test_equally_long_orthogonal_directions_count_in_full(shape):
    smaller = min(shape)
    directions, _ = torch.linalg.qr(torch.randn(max(shape), smaller, generator=torch.Generator().manual_seed(0)))
    features = directions if shape[0] >= shape[1] else directions.t()
    assert effective_rank(features) == pytest.approx(smaller, rel=1e-4)


def test_the_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    singular = torch.linalg.svdvals(features)
    shares = (singular / singular.sum()).tolist()
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert effective_rank(features) == pytest.approx(expected, rel=1e-5)
    assert effective_rank(10 * features) == pytest.approx(expected, rel=1e-5)


def test_features_of_zeros_have_no_direction():
    assert effective_rank(torch.zeros(4, 3)) == pytest.approx(1)
