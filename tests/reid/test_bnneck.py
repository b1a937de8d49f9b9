"""The neck and its classifier."""

import torch

from rayreid.reid.bnneck import BNNeck, identity_classifier


def test_neck_standardises_and_its_shift_is_frozen():
    neck = BNNeck(6)
    x = 3 + 5 * torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    y = neck(x)
    torch.testing.assert_close(y, torch.nn.functional.batch_norm(x, None, None, training=True))
    y.square().sum().backward()
    assert neck.weight.grad is not None
    assert neck.bias.grad is None
    assert not neck.bias.any() and not neck.bias.requires_grad
    assert (neck.weight == 1).all()


def test_neck_state_has_the_published_names():
    assert list(BNNeck(6).state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def test_neck_in_evaluation_uses_running_statistics():
    neck = BNNeck(2)
    neck(torch.randn(32, 2, generator=torch.Generator().manual_seed(0)) + 4)
    neck.eval()
    one = torch.tensor([[1.0, 2.0]])
    expected = (one - neck.running_mean) / (neck.running_var + neck.eps).sqrt()
    torch.testing.assert_close(neck(one), expected)


def test_classifier_starts_small_and_without_bias():
    torch.manual_seed(0)
    classifier = identity_classifier(384, 200)
    assert classifier.bias is None
    assert classifier.weight.shape == (200, 384)
    assert 0.00098 < classifier.weight.std().item() < 0.00102
    assert abs(classifier.weight.mean().item()) < 2e-5


def test_neck_in_evaluation_is_a_scale_and_a_shift():
    neck = BNNeck(3)
    neck(torch.randn(32, 3, generator=torch.Generator().manual_seed(0)) + 4)
    with torch.no_grad():
        neck.weight.mul_(torch.tensor([1.0, 2.0, -3.0]))
    neck.eval()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    scale, shift = neck.scale_and_shift()
    torch.testing.assert_close(x * scale + shift, neck(x))
