"""What makes training fast leaves its results alone: compilation, bf16 autocast, channels-last memory.

Each is compared with eager float32 in the default layout. Deviations are relative to the expected tensor's standard
deviation; for gradients, that of all gradients of that parameter.
"""

import copy

import pytest
import torch
from torch import nn

from rayreid.models.backbones import build_backbone

SMALL = {
    "patchify": {"name": "vit_tiny", "stem": "patchify", "img_size": (64, 32), "depth": 2, "embed_dim": 48},
    "ics": {"name": "vit_tiny", "stem": "ics", "img_size": (64, 32), "depth": 2, "embed_dim": 48},
    "swin": {"name": "swin_tiny", "img_size": (64, 32), "depths": (1, 1, 1, 1), "embed_dim": 24},
    "resnet50": {"name": "resnet50", "img_size": (64, 32)},
}
FLOAT32 = 1e-4  # features and gradients in another order of summation
BF16_COSINE = 0.999  # features
BF16_GRADIENT_COSINE = 0.99
SIZES = [(64, 32), (32, 16)]  # the model's own, and that of local crops


def backbone_of(kind):
    torch.manual_seed(0)
    return build_backbone(**SMALL[kind])


def images_of(size, batch=4):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def step(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Feature and gradients of one training step, float32, by name; the loss is a fixed random projection."""
    network.zero_grad()
    feature = network(images).float()
    direction = torch.randn(feature.shape, generator=torch.Generator().manual_seed(2))
    (feature * direction).sum().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    assert gradients
    return {"feature": feature.detach(), **gradients}


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.std() if value.numel() > 1 else value.abs()
        # A gradient that is zero but for rounding (a key's bias under softmax) has no scale of its own.
        scale = max(float(scale), 1e-3)
        assert float((found[name] - value).abs().max()) <= tolerance * scale, name


def cosine(a, b):
    return float(nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.mark.slow  # the compiler takes minutes
@pytest.mark.thorough  # `pretraining/test_dino_compiled.py` compares a step of the same network
@pytest.mark.parametrize("kind", ["patchify", "ics"])
def test_compiled_training_is_eager_training(kind):
    torch.compiler.reset()
    eager = backbone_of(kind)
    network = copy.deepcopy(eager)
    compiled = torch.compile(network, fullgraph=True)
    for size in SIZES:  # the second compiles anew
        expected = step(eager, images_of(size))
        found = {name.removeprefix("_orig_mod."): value for name, value in step(compiled, images_of(size)).items()}
        assert_close(found, expected, FLOAT32)
    for name, buffer in eager.named_buffers():
        torch.testing.assert_close(dict(network.named_buffers())[name], buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("size", SIZES)
def test_channels_last_is_the_default_layout(kind, size):
    # 53 batch norms over a handful of values amplify float32's rounding a thousandfold
    dtype = torch.float64 if kind == "resnet50" else torch.float32
    eager, images = backbone_of(kind).to(dtype), images_of(size).to(dtype)
    network = copy.deepcopy(eager).to(memory_format=torch.channels_last)
    assert_close(step(network, images.to(memory_format=torch.channels_last)), step(eager, images), FLOAT32)


@pytest.mark.parametrize("kind", SMALL)
def test_bf16_autocast_is_near_float32(kind):
    eager = backbone_of(kind)
    network = copy.deepcopy(eager)
    # Of maps of 4 × 2 torch 2.12's bf16 convolution (stride 2, on CPUs with AMX) reads memory that nobody has written.
    images = images_of((128, 64) if kind == "resnet50" else (64, 32))
    expected = step(eager, images)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(network, images)
    assert cosine(found["feature"], expected["feature"]) > BF16_COSINE
    if kind == "resnet50":
        return  # 53 batch norms over four images amplify rounding: its gradients are not a measure
    gradients = [
        torch.cat([step[name].flatten() for name in expected if name != "feature"]) for step in (found, expected)
    ]
    assert cosine(*gradients) > BF16_GRADIENT_COSINE
