"""The neck in a weights file: it comes back whole, and stands in nobody's way."""

import numpy as np
import pytest
import torch
from torch import nn

from rayreid.data.batch import ImageBatch
from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.checkpoints import read_checkpoint
from rayreid.models.embedding import Embedder
from rayreid.models.neck import LEFT_OUT, UNUSED, Neck, load_neck
from rayreid.models.weights import check_weights, load_backbone, load_weights, save_backbone
from rayreid.reid.supervised import SupervisedReID
from rayreid.stages import finetune

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
    with pytest.raises(UserError, match=r"evaluate\.feature is after, but these weights have no BNNeck"):
        load_neck(tmp_path / "model.safetensors", after=True)


def test_an_adapted_model_is_compared_after_its_neck_in_any_case(saved):
    _, neck, path = saved
    for after in (False, True):
        assert torch.equal(load_neck(path, after).scale, neck.scale)


def test_the_neck_of_a_supervised_model_is_used_on_request_alone(tmp_path):
    torch.manual_seed(0)
    method = SupervisedReID(build("vit_tiny", depth=1), 4)
    method.bottleneck.train()(torch.randn(64, method.num_features) * 3 + 1)
    method.bottleneck.weight.data.uniform_(0.5, 2)
    path = tmp_path / "model.safetensors"
    finetune._save({}, path, method)
    images = ImageBatch.collate([np.random.default_rng(n).integers(0, 256, (40, 32, 3), np.uint8) for n in range(3)])
    before, after = (
        Embedder(path, torch.device("cpu"), "fp32", False, after=wanted)(images) for wanted in (False, True)
    )
    norm = nn.BatchNorm1d(method.num_features).eval()
    norm.load_state_dict(method.bottleneck.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(after, norm(before))
    order = [
        torch.nn.functional.normalize(one, dim=1) @ torch.nn.functional.normalize(one, dim=1).T
        for one in (before, after)
    ]
    assert not torch.allclose(*order, atol=0.01)  # similarities differ, hence rankings
    report = load_weights(build("vit_tiny", depth=1), path)
    assert report.whole and report.ignored == {"bnneck.scale": UNUSED, "bnneck.shift": UNUSED}
