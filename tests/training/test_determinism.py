import subprocess
import sys

import pytest
import torch

from rayreid.models.positions import _interpolated, _interpolated_exactly
from rayreid.training.determinism import refusal

PROGRAM = """
import os, torch
from rayreid.training.determinism import require_determinism
require_determinism()
print(torch.are_deterministic_algorithms_enabled(), os.environ["CUBLAS_WORKSPACE_CONFIG"])
"""


def test_it_is_required_of_the_whole_process():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", ":4096:8"]


def test_a_kernel_that_is_not_deterministic_is_refused_in_one_line():
    error = RuntimeError(
        "upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, …"
    )
    assert str(refusal(error)) == (
        "deterministic: true, but upsample_bicubic2d_backward_out_cuda has no deterministic kernel on this device; set "
        "it to false"
    )
    assert refusal(RuntimeError("CUDA error: an illegal memory access was encountered")) is None


@pytest.mark.parametrize(("grid", "new"), [((8, 4), (4, 2)), ((4, 2), (8, 4)), ((16, 8), (8, 4)), ((8, 4), (5, 7))])
def test_positions_are_resampled_to_the_same_values_and_gradients(grid, new):
    torch.manual_seed(0)
    scale = [(there + 0.1) / here for there, here in zip(new, grid, strict=True)]
    one, other = (torch.randn(1, 6, *grid, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    results = [
        resample(table.requires_grad_(), scale)
        for resample, table in ((_interpolated, one), (_interpolated_exactly, other))
    ]
    assert results[1].shape == (1, 6, *new)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    for result in results:
        result.square().sum().backward()
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-5)


STEP = """
import hashlib, sys, torch
from rayreid.models.backbones import build_backbone
from rayreid.training.compilation import compiled
from rayreid.training.determinism import require_determinism
require_determinism()
torch.manual_seed(0)
backbone = build_backbone("vit_tiny", "ics", (64, 32), 2).cuda().train()
crops = [torch.randn(8, 3, 64, 32).cuda(), torch.randn(16, 3, 32, 16).cuda()]
with torch.autocast("cuda", dtype=torch.bfloat16), compiled(sys.argv[1] == "compiled"):
    loss = backbone.features(crops).float().square().mean(dim=0).log().sum()
loss.backward()
digest = hashlib.sha256()
for parameter in backbone.parameters():
    digest.update(parameter.grad.cpu().numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_on_a_gpu_two_processes_have_the_same_gradients_of_two_crop_sizes(how):
    runs = [
        subprocess.run([sys.executable, "-c", STEP, how], capture_output=True, text=True, check=True) for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout != ""
