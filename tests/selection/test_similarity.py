import numpy as np
import pytest
import torch

from rayreid.selection import similarity
from rayreid.selection.similarity import nearest


def naive(features: np.ndarray, references: np.ndarray) -> np.ndarray:
    """All cosines (N, M) in float64."""
    a, b = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (features, references)
    )
    return a @ b.T


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_nearest_is_that_of_all_pairs(monkeypatch, block, dtype):
    monkeypatch.setattr(similarity, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    features = (5 * torch.randn(40, 12, generator=generator)).to(dtype)
    references = torch.randn(23, 12, generator=generator).to(dtype)
    cosines, rows = nearest(features, references)
    expected = naive(features.numpy(), references.numpy())
    np.testing.assert_allclose(cosines, expected.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(rows, expected.argmax(axis=1))


@pytest.mark.parametrize("block", [2, 100])
def test_ties_go_to_the_first_and_what_is_no_number_stays_none(monkeypatch, block):
    monkeypatch.setattr(similarity, "_BLOCK", block)
    references = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    cosines, rows = nearest(torch.tensor([[3.0, 0.0], [float("nan"), 1.0], [-1.0, 0.0]]), references)
    assert rows[0] == 1 and rows[2] == 0
    assert cosines[0] == 1 and cosines[2] == 0 and cosines[1].isnan()
