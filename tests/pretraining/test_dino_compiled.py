"""The DINO step compiled: one version per shape, whatever changes from step to step, and the eager step's numbers."""

from functools import partial
from itertools import islice
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.utils import counters

from rayreid.models.backbones import build_backbone
from rayreid.pretraining.dino import DINO
from rayreid.pretraining.dino_schedules import DINOSchedules
from rayreid.training import loop
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.compilation import compiled
from rayreid.training.loop import Batch, LoopSettings, autocast, train

CPU = torch.device("cpu")

SCHEDULES = DINOSchedules(10, 2, 1e-3, warmup_epochs=1, warmup_teacher_temp=0.03, warmup_teacher_temp_epochs=5)


def build(stem, drop_path, depth=4):
    torch.manual_seed(0)
    networks = [build_backbone("vit_tiny", stem, (64, 32), depth, drop_path=rate) for rate in (drop_path, 0.0)]
    head = {"out_dim": 96, "hidden_dim": 32, "bottleneck_dim": 16}
    return DINO(*networks, SCHEDULES, **head, freeze_last_layer_epochs=0).train()


def losses(method, backend, device="cpu", steps=4, precision="fp32"):
    """Of steps in different epochs, so that every rate and temperature changes."""
    generator = torch.Generator().manual_seed(1)
    crops = [torch.randn(n, 3, *size, generator=generator) for n, size in ((4, (64, 32)), (6, (32, 16)))]
    crops = [crop.to(device) for crop in crops]
    method = method.to(device)
    optimizer, found = method.build_optimizer(), []
    for step in range(0, 4 * steps, 4):
        torch.manual_seed(step)
        method.set_schedules(optimizer, step)
        with autocast(precision, torch.device(device)), compiled(backend is not None, backend or "eager"):
            terms = method.losses(crops)
        terms["loss"].backward()
        method.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        method.after_update(step)
        found.append(terms["loss"].item())
    return found


@pytest.mark.parametrize("stem", ["patchify", "ics"])
def test_it_is_the_eager_step_and_compiles_once(stem):
    eager = losses(build(stem, 0.3), None)
    counters.clear()  # other tests of this process compile, too
    losses(build(stem, 0.3), "aot_eager", steps=1)
    before = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        again = losses(build(stem, 0.3), "aot_eager")
    assert counters["stats"]["unique_graphs"] == before
    assert not counters["graph_break"]
    assert again == pytest.approx(eager, rel=1e-4)


def test_blocks_share_one_compiled_function():
    """Deeper networks compile no more than shallow ones."""
    graphs = []
    for depth in (3, 5):
        torch._dynamo.reset()
        before = counters["stats"]["unique_graphs"]
        losses(build("patchify", 0.1, depth), "aot_eager", steps=1)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert graphs[0] == graphs[1] > 0


def batches(device, start):
    step = start
    while True:
        generator = torch.Generator().manual_seed(step)
        crops = [torch.randn(n, 3, *size, generator=generator) for n, size in ((4, (64, 32)), (6, (32, 16)))]
        yield Batch([str(step)], [crop.to(device) for crop in crops])
        step += 1


def test_compiled_and_resumed_is_compiled(tmp_path):
    def run(method, checkpoints=None, until=3):
        settings = LoopSettings(until, 1, log_every=1, compile=True, checkpoint_seconds=-1.0)
        rows = []
        with patch.object(loop, "compiled", partial(compiled, backend="aot_eager")):
            train(method, partial(batches, CPU), settings, CPU, checkpoints, rows.append)
        return [row["loss"] for row in rows]

    whole = build("patchify", 0.3)
    expected = run(whole)
    checkpoints = Checkpoints(tmp_path)
    run(build("patchify", 0.3), checkpoints, until=2)
    resumed = build("patchify", 0.3, depth=4)
    assert run(resumed, checkpoints) == expected[2:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_on_a_gpu_no_step_makes_the_host_wait(compile):
    """Of those that are neither logged nor saved, and after the first, which compiles."""
    device, watching = torch.device("cuda"), []
    made = list(islice(batches(device, 0), 8))

    def watched(start):
        for number, batch in enumerate(made):
            torch.cuda.set_sync_debug_mode("error" if 2 <= number < 6 else "default")
            watching.append(torch.cuda.get_sync_debug_mode())
            yield batch

    try:
        settings = LoopSettings(8, 1, log_every=8, precision="bf16", compile=compile)
        train(build("patchify", 0.1).to(device), watched, settings, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watching == [0, 0, 2, 2, 2, 2, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("stem", [pytest.param("patchify", marks=pytest.mark.thorough), "ics"])
def test_inductor_gives_the_eager_numbers_on_a_cpu(stem):
    assert losses(build(stem, 0.3), "inductor") == pytest.approx(losses(build(stem, 0.3), None), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("stem", ["patchify", "conv", "ics"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_gives_the_cpu_s_numbers(stem, precision):
    """Without drop path, which every device draws by itself."""
    here = losses(build(stem, 0.0), None)
    for backend in (None, "inductor"):
        there = losses(build(stem, 0.0), backend, "cuda", precision=precision)
        assert there == pytest.approx(here, rel=1e-3 if precision == "fp32" else 3e-2)
