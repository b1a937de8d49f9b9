import pytest
import torch
from torch import nn

from rayreid.training.gradients import clip_each, clip_together, gradient_norms, norm_scalars


def test_norms_are_of_every_tensor_and_of_all_together():
    weights, bias, frozen = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (3,), (1,)))
    weights.grad, bias.grad = torch.full((2, 2), 2.0), torch.tensor([0.0, 3.0, 0.0])
    assert [norm.item() for norm in gradient_norms([weights, bias, frozen])] == [4.0, 3.0]
    scalars = norm_scalars(gradient_norms([weights, bias, frozen]))
    assert {name: value.item() for name, value in scalars.items()} == {"grad_norm": 5.0, "grad_norm_max": 4.0}


def test_a_gradient_that_is_not_finite_shows():
    weight, bias = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    weight.grad, bias.grad = torch.tensor([torch.nan, 1.0]), torch.tensor([1.0])
    assert not any(value.isfinite() for value in norm_scalars(gradient_norms([weight, bias])).values())


@pytest.mark.parametrize("parameters", [[], [nn.Parameter(torch.zeros(1))]])
def test_without_gradients_there_is_nothing_to_say(parameters):
    assert norm_scalars(gradient_norms(parameters)) == {}


@pytest.mark.parametrize(
    ("clip", "expected"), [(clip_each, [1.5, 1.0]), (clip_together, [3 * 0.2**0.5, 1.5 * 0.2**0.5])]
)
def test_gradients_are_scaled_down_to_a_norm_and_never_up(clip, expected):
    weights, bias, frozen = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    weights.grad, bias.grad = (torch.tensor([value]) for value in (2.0, 1.0))
    for limit in (3.0, 1.5):
        clip([weights, frozen, bias], gradient_norms([weights, frozen, bias]), limit)
        found = [weights.grad.item(), bias.grad.item()]
        assert found == pytest.approx([2.0, 1.0] if limit == 3.0 else expected, rel=1e-5)
    clip([frozen], gradient_norms([frozen]), 1.0)
    assert frozen.grad is None
