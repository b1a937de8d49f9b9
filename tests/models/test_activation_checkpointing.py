"""Blocks that are computed again in the backward pass give the same losses and gradients."""

from functools import wraps

import pytest
import torch
from torch import Tensor

from rayreid.errors import UserError
from rayreid.models import blocks
from rayreid.models.backbones import build_backbone
from rayreid.training.compilation import compiled
from rayreid.training.loop import autocast

CPU = torch.device("cpu")
SIZES = {"depth": 3, "embed_dim": 24, "num_heads": 2}


def _step(
    checkpointed: bool, stem: str, backend: str | None, precision: str, device: torch.device = CPU
) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", stem, (32, 16), drop_path=0.5, **SIZES).to(device).train()
    if checkpointed:
        backbone.checkpoint_activations()
    crops = [torch.randn(4, 3, 32, 16).to(device), torch.randn(6, 3, 16, 16).to(device)]
    torch.manual_seed(1)  # drop path
    with autocast(precision, device), compiled(backend is not None, backend or "eager"):
        loss = backbone.features(crops).square().mean(dim=0).log().sum()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in backbone.named_parameters()}


@pytest.mark.parametrize(
    ("stem", "backend", "precision"),
    [("patchify", None, "fp32"), ("ics", None, "fp32"), ("patchify", None, "bf16"), ("patchify", "aot_eager", "fp32")],
)
def test_losses_and_gradients_are_the_same(stem, backend, precision):
    loss, gradients = _step(False, stem, backend, precision)
    again, others = _step(True, stem, backend, precision)
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [None, "inductor"])
def test_on_a_gpu_they_are_the_same_too(backend):
    """There, the backward pass runs on another thread."""
    loss, gradients = _step(False, "ics", backend, "fp32", torch.device("cuda"))
    again, others = _step(True, "ics", backend, "fp32", torch.device("cuda"))
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_the_blocks_are_computed_again(monkeypatch):
    called = []
    block = blocks._block
    monkeypatch.setattr(blocks, "_block", wraps(block)(lambda *given: called.append(given) or block(*given)))
    _step(False, "patchify", None, "fp32")
    assert len(called) == SIZES["depth"] - 1
    _step(True, "patchify", None, "fp32")
    assert len(called) == 3 * (SIZES["depth"] - 1)


@pytest.mark.parametrize("name", ["vit_small_pass", "vit_small_dinov2_reg4", "vit_small_dinov3"])
def test_the_vits_of_published_models_have_it_too(name):
    def gradients(checkpointed):
        torch.manual_seed(0)
        patch = 14 if "dinov2" in name else 16
        backbone = build_backbone(name, img_size=(4 * patch, 2 * patch), depth=2, embed_dim=48, num_heads=2).train()
        if checkpointed:
            backbone.checkpoint_activations()
        crops = [torch.randn(2, 3, 4 * patch, 2 * patch), torch.randn(3, 3, 2 * patch, patch)]
        backbone.features(crops).pow(3).sum().backward()
        return {key: parameter.grad for key, parameter in backbone.named_parameters()}

    again = gradients(True)
    for key, gradient in gradients(False).items():
        assert gradient is not None and gradient.abs().sum() > 0, key
        torch.testing.assert_close(again[key], gradient, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["swin_tiny", "resnet50"])
def test_other_networks_refuse(name):
    with torch.device("meta"):
        backbone = build_backbone(name)
    with pytest.raises(UserError, match=rf"checkpoint_activations: true is for vit_\* only, not {name}"):
        backbone.checkpoint_activations()
