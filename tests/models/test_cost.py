import pytest

from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.cost import forward_cost

D, L, N, P = 384, 12, 129, 768


def test_the_cost_of_a_vit_is_that_of_its_formula_less_the_last_block():
    nominal = (2 * N * (12 * D**2 + 2 * N * D) * L + 2 * (N - 1) * P * D) / 1e9  # docs/performance.md
    found = forward_cost("vit_small", "patchify", (256, 128))
    assert 0.92 < found.gflop / nominal < 0.95


def test_parameters_are_those_of_the_network():
    network = build_backbone("vit_tiny", "ics", (64, 32), depth=1)
    assert forward_cost("vit_tiny", "ics", (64, 32), 1).parameters == sum(one.numel() for one in network.parameters())


@pytest.mark.parametrize("name", ["swin_tiny", "resnet50", "vit_base_dinov2"])
def test_every_family_can_be_counted(name):
    size = (252, 126) if "dinov2" in name else (256, 128)
    assert forward_cost(name, "patchify", size).gflop > 4


def test_a_smaller_crop_costs_less():
    whole = forward_cost("vit_tiny", "patchify", (256, 128), 2)
    assert forward_cost("vit_tiny", "patchify", (256, 128), 2, (128, 64)).gflop < 0.3 * whole.gflop


def test_an_unknown_network_is_refused_in_one_line():
    with pytest.raises(UserError, match="vit_smal"):
        forward_cost("vit_smal", "patchify", (256, 128))
