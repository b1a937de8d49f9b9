"""The neck in a weights file: it comes back whole, and stands in nobody's way."""

import pytest
import torch
from torch import nn

from rayreid.models.backbones import build_backbone
from rayreid.models.checkpoints import read_checkpoint
from rayreid.models.neck import LEFT_OUT, Neck, load_neck
from rayreid.models.weights import check_weights, load_backbone, load_weights, save_backbone

HALF = (0.5, 0.5, 0.5)


def build(name, **changes):
    return build_backbone(name, img_size=(32, 32), **changes)


@pytest.fixture(params=["vit_tiny", "resnet50"])
def saved(request, tmp_path):
    """A backbone, its neck, and the file of both."""
    torch.manual_seed(0)
    backbone = build(request.param, **({"depth": 1} if request.param == "vit_tiny" else {})).eval()
    neck = Neck(torch.rand(backbone.num_features) + 0.5, torch.randn(backbone.num_features))
    save_backbone(tmp_path / "model.safetensors", backbone, HALF, HALF, neck, interpolation="bicubic")
    return backbone, neck, tmp_path / "model.safetensors"


def test_a_neck_comes_back_with_the_file(saved):
    backbone, neck, path = saved
    other, header = load_backbone(path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images) * neck.scale + neck.shift
        torch.testing.assert_close(load_neck(path)(other.eval()(images)), expected)
    assert header["interpolation"] == "bicubic"


def test_a_training_begins_without_it_and_the_report_says_so(saved):
    backbone, _, path = saved
    fresh = build(backbone.spec["name"], depth=backbone.spec["depth"])
    report = load_weights(fresh, path)
    assert report.whole and report.ignored == {"neck.scale": LEFT_OUT, "neck.shift": LEFT_OUT}
    assert check_weights(fresh, path).whole
    assert set(read_checkpoint(path).state) == set(backbone.state_dict())
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[name]), name


def test_a_file_without_one_has_the_identity(tmp_path):
    save_backbone(tmp_path / "model.safetensors", build("vit_tiny", depth=1), HALF, HALF)
    assert isinstance(load_neck(tmp_path / "model.safetensors"), nn.Identity)
