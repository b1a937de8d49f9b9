"""The DINO head's last layer on a GPU's TF32 units."""

import pytest
import torch
import torch.nn.functional as F

from rayreid.pretraining.head import DINOHead


@pytest.mark.gpu
def test_tf32_moves_logits_and_gradients_by_little():
    torch.manual_seed(0)
    layer = DINOHead(32, 4096, hidden_dim=32).last_layer
    exact = DINOHead(32, 4096, hidden_dim=32).last_layer.double()
    exact.load_state_dict(layer.state_dict())
    layer = layer.cuda()
    x = F.normalize(torch.randn(64, 256, dtype=torch.float64), dim=1)
    weights = torch.randn(64, 4096, dtype=torch.float64)
    here = x.clone().requires_grad_()
    there = x.float().cuda().requires_grad_()
    before = torch.backends.cuda.matmul.allow_tf32
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = layer(there)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.cpu().double(), exact(here), rtol=0, atol=5e-4)
    (logits * weights.float().cuda()).sum().backward()
    (exact(here) * weights).sum().backward()
    assert torch.backends.cuda.matmul.allow_tf32 == before
    for found, expected in ((there.grad, here.grad), (layer.weight_v.grad, exact.weight_v.grad)):
        found = found.cpu().double()
        assert (found - expected).norm() < 2e-3 * expected.norm()
