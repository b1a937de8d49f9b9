import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rayreid.errors import UserError
from rayreid.inference.named_inputs import find_model
from rayreid.models.backbones import build_backbone
from rayreid.models.embedding import Embedder
from rayreid.models.weights import save_backbone

THIRD = (0.5, 0.5, 0.5)


@pytest.fixture
def incomplete(tmp_path):
    """A file of ours that lost a tensor."""
    path = tmp_path / "ours.safetensors"
    save_backbone(path, build_backbone("vit_tiny", img_size=(64, 32), depth=1), THIRD, THIRD)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys() if name != "norm.bias"}  # noqa: SIM118
    save_file(state, path, metadata=header)
    return path


def test_a_model_that_is_not_complete_is_used_only_where_that_was_asked_for(incomplete):
    with pytest.raises(UserError, match=r"1 missing: norm\.bias.*--no-strict\) would take 17 of the 18"):
        find_model(str(incomplete)).report()
    with pytest.raises(UserError, match="1 missing"):
        Embedder(incomplete, torch.device("cpu"), "fp32")
    model = find_model(str(incomplete), strict=False)
    assert "17 tensors loaded, 1 missing" in str(model.report())
    embed = Embedder(model.weights, torch.device("cpu"), "fp32", strict=model.strict)
    assert embed.backbone.spec["name"] == "vit_tiny"
