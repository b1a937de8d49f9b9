import json

import pytest
from torch import nn

from rayreid.models.backbones import build_backbone
from rayreid.models.decay import split_decay


@pytest.mark.parametrize("stem", ["ics", "patchify"])
def test_the_published_sets(golden_dir, stem):
    expected = json.loads((golden_dir / f"{stem}_vit_weight_decay.json").read_text())
    depth = len({name.split(".")[1] for name in expected["decayed"] if name.startswith("blocks.")})
    decayed, undecayed = split_decay(build_backbone("vit_tiny", stem, depth=depth))
    assert (set(decayed), set(undecayed)) == (set(expected["decayed"]), set(expected["not_decayed"]))
    assert not set(decayed) & set(undecayed)


def test_frozen_parameters_stand_in_neither_list():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    module[1].bias.requires_grad_(False)
    assert split_decay(module) == (["0.weight"], ["0.bias", "1.weight"])


def test_a_bias_of_any_shape_is_not_decayed():
    module = nn.Bilinear(2, 2, 3)
    module.bias = nn.Parameter(module.bias.detach()[:, None])
    assert split_decay(module) == (["weight"], ["bias"])
