import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rayreid.errors import UserError
from rayreid.inference.named_inputs import find_artifact, find_model, open_images
from rayreid.models.backbones import build_backbone
from rayreid.models.embedding import Embedder
from rayreid.models.weights import save_backbone
from rayreid.storage.artifacts import Artifact

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


def test_an_artifact_that_is_damaged_or_incomplete_is_named(tmp_path):
    artifact = Artifact(tmp_path, "evaluate", 1, {})
    artifact.path.mkdir(parents=True)
    (artifact.path / "cmc.npy").write_bytes(b"curve")
    with pytest.raises(UserError, match=r"no artifact\.json in it"):
        find_artifact(str(artifact.path))
    artifact.finish({"mAP": 0.5})
    (artifact.path / "cmc.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"this artifact is damaged: cmc\.npy has 0 bytes instead of 5; restore it"):
        find_artifact(str(artifact.path))
    (artifact.path / "cmc.npy").write_bytes(b"curve")
    assert find_artifact(str(artifact.path)).facts == {"mAP": 0.5}


@pytest.mark.parametrize("named", [find_model, find_artifact, open_images], ids=["model", "artifact", "images"])
def test_an_empty_name_is_not_the_current_folder(named):
    with pytest.raises(UserError, match=r"a path is empty, .*; name the file or folder"):
        named("")
