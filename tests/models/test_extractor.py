import pytest
import torch

from rayreid.data.batch import ImageBatch
from rayreid.models.backbones import build_backbone
from rayreid.models.embedding import Embedder
from rayreid.models.extractor import load_extractor
from rayreid.models.neck import Neck
from rayreid.models.weights import save_backbone


@pytest.mark.parametrize("with_neck", [False, True])
def test_features_are_those_of_the_evaluation_at_length_one(tmp_path, with_neck):
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", "ics", (64, 32), depth=1).eval()
    neck = Neck(torch.rand(192) + 0.5, torch.randn(192)) if with_neck else None
    save_backbone(tmp_path / "model.safetensors", backbone, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), neck)
    extractor, size = load_extractor(tmp_path / "model.safetensors")
    pixels = torch.randint(0, 256, (3, 64, 32, 3), dtype=torch.uint8)
    assert size == (64, 32) and not extractor.training
    with torch.no_grad():
        features = extractor(pixels.permute(0, 3, 1, 2).float() / 255)
    embed = Embedder(tmp_path / "model.safetensors", torch.device("cpu"), "fp32")
    expected = embed(ImageBatch.collate([image.numpy() for image in pixels]))
    torch.testing.assert_close(features, expected / expected.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)
