import pytest
import torch
from torch import nn

from rayreid.models.norms import SyncedBatchNorm
from rayreid.pretraining.projector import mlp


@pytest.mark.parametrize(
    ("norms", "layers"),
    [
        ((True, True), ["Linear", "SyncedBatchNorm", "ReLU"] * 2 + ["Linear", "SyncedBatchNorm"]),  # MoCo v3
        ((True, False), ["Linear", "SyncedBatchNorm", "ReLU"] * 2 + ["Linear"]),  # MoBY
        ((False, False), ["Linear", "ReLU"] * 2 + ["Linear"]),  # MoCo v2
    ],
)
def test_layers_are_those_of_the_paper(norms, layers):
    head = mlp((6, 5, 4, 3), *norms)
    assert [type(layer).__name__ for layer in head] == layers
    assert head(torch.randn(8, 6)).shape == (8, 3)


def test_a_layer_has_a_bias_where_no_norm_follows():
    biases = [layer.bias is not None for layer in mlp((6, 5, 4), True, False) if isinstance(layer, nn.Linear)]
    assert biases == [False, True]


def test_the_last_norm_has_neither_scale_nor_shift():
    head = mlp((6, 5, 4), hidden_norm=True, last_norm=True)
    norms = [layer for layer in head if isinstance(layer, SyncedBatchNorm)]
    assert [norm.affine for norm in norms] == [True, False]
    out = head(torch.randn(64, 6))
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
