import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rayreid.errors import UserError
from rayreid.models import onnx_export, resnet
from rayreid.models.backbones import build_backbone
from rayreid.models.onnx_export import export_onnx
from small_resnet import SmallResNet

SMALL = {
    "ics": {"name": "vit_tiny", "stem": "ics", "img_size": (64, 32), "depth": 1, "embed_dim": 48},
    "swin": {"name": "swin_tiny", "img_size": (64, 32), "depths": (1, 1, 1, 1), "embed_dim": 24},
    "resnet50": {"name": "resnet50", "img_size": (64, 32)},
}


def backbone_of(kind):
    torch.manual_seed(0)
    with patch.object(resnet, "ResNet50", SmallResNet):
        backbone = build_backbone(**SMALL[kind])
    for name, buffer in backbone.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return backbone


@pytest.mark.parametrize("kind", SMALL)
def test_the_file_computes_the_features_at_any_batch(tmp_path, kind):
    backbone = backbone_of(kind)
    deviation = export_onnx(backbone, tmp_path / "b.onnx", {"mean": [0.5, 0.25, 0.125]}, batches=(1, 2))
    assert backbone.training, "the backbone is left as it was"
    assert 0 < deviation.greatest <= 1e-4 and deviation.batches == (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["b.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "b.onnx")
    images = torch.randn(5, 3, 64, 32, generator=torch.Generator().manual_seed(7))
    (features,) = session.run(["features"], {"images": images.numpy()})
    with torch.no_grad():
        expected = backbone.eval()(images).numpy()
    assert np.abs(features - expected).max() < 1e-4 * expected.std()
    props = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "b.onnx").metadata_props}
    assert props == {"mean": [0.5, 0.25, 0.125], "backbone": backbone.spec}
    content = (tmp_path / "b.onnx").read_bytes()
    for module in (onnx_export, torch):  # the exporter notes which line of code each node comes from
        assert str(Path(module.__file__).parents[1]).encode() not in content


def test_a_model_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    def spoil(path, facts):
        model = onnx.load(path)
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.1, weight.name))
        onnx.save(model, path)

    monkeypatch.setattr(onnx_export, "_describe", spoil)
    with pytest.raises(UserError, match=r"differs.* \d\.\de[-+]0[0-3] standard deviations.*1e-04"):
        export_onnx(backbone_of("ics"), tmp_path / "b.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_deviation_that_is_no_number_is_refused(tmp_path):
    backbone = backbone_of("ics")
    torch.nn.init.constant_(backbone.norm.weight, float("nan"))
    with pytest.raises(UserError, match="differs"):
        export_onnx(backbone, tmp_path / "b.onnx")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_remedy(tmp_path, monkeypatch):
    found = onnx_export.importlib.util.find_spec
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else found(n))
    with pytest.raises(UserError, match=r"needs the extra rayreid\[onnx\]: pip install onnxruntime") as error:
        export_onnx(backbone_of("ics"), tmp_path / "b.onnx")
    assert "\n" not in str(error.value)
