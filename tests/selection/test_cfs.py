import pytest
import torch

from rayreid.errors import UserError
from rayreid.selection.cfs import cfs


def test_is_the_cosine_of_the_two_features():
    source = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    target = torch.tensor([[6.0, 8.0], [0.0, 5.0], [-2.0, -2.0], [1.0, 1.0]])
    scores = cfs(source, target, list("abcd"))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.0, -1.0, 0.5**0.5]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_multiplies_in_float32_whatever_comes(dtype):
    torch.manual_seed(0)
    source, target = (torch.randn(64, 384).to(dtype) for _ in range(2))
    scores = cfs(source, target, [str(i) for i in range(64)])
    expected = torch.nn.functional.cosine_similarity(source.double(), target.double())
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-6)


def test_large_half_precision_features_do_not_overflow():
    big = torch.full((2, 512), 6e4, dtype=torch.float16)
    assert cfs(big, big, ["a", "b"]).tolist() == pytest.approx([1.0, 1.0])


def test_stays_within_one():
    features = torch.rand(4096, 7, generator=torch.Generator().manual_seed(0))
    assert cfs(features, features, [str(i) for i in range(4096)]).max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_an_image_without_direction_is_named(value):
    source, target = torch.ones(8, 3), torch.ones(8, 3)
    target[5] = value
    with pytest.raises(UserError, match=r"target proxy .* 1 images \(pool/5\.jpg\)"):
        cfs(source, target, [f"pool/{i}.jpg" for i in range(8)])


def test_names_only_the_first_of_many():
    with pytest.raises(UserError, match=r"source proxy .* 8 images \(0, 1, 2, 3, 4, …\)"):
        cfs(torch.zeros(8, 3), torch.ones(8, 3), [str(i) for i in range(8)])


def test_features_must_pair_up():
    with pytest.raises(ValueError, match="not two"):
        cfs(torch.ones(2, 3), torch.ones(2, 4), ["a", "b"])
    with pytest.raises(ValueError, match="of 1 images"):
        cfs(torch.ones(2, 3), torch.ones(2, 3), ["a"])
