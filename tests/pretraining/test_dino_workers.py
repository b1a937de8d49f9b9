"""Two workers with half of the batch each do what one does with all of it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rayreid.models.backbones import build_backbone
from rayreid.pretraining.dino import DINO
from rayreid.training.parallel import average_gradients

WORLD, IMAGES, STEPS = 2, 4, 3


def _train(rank: int, world: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    size = {"img_size": (32, 16), "depth": 1, "embed_dim": 24, "num_heads": 2}
    method = DINO(
        build_backbone("vit_tiny", stem="ics", **size),
        build_backbone("vit_tiny", stem="ics", **size),
        out_dim=32,
        hidden_dim=16,
        bottleneck_dim=8,
        epochs=STEPS,
        steps_per_epoch=1,
        lr=1e-3,
        warmup_epochs=0,
    ).double()
    optimizer = method.build_optimizer()
    share = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    for step in range(STEPS):
        shapes = ((2, IMAGES, 3, 32, 16), (3, IMAGES, 3, 16, 16))
        crops = [torch.randn(shape, dtype=torch.float64)[:, share].flatten(0, 1) for shape in shapes]
        method.set_schedules(optimizer, step)
        method.losses(crops)["loss"].backward()
        average_gradients(method.student.parameters())
        method.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        method.after_update(step)
    return method.state_dict()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.save(_train(rank, WORLD), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(_worker, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_two_workers_equal_one(states):
    alone = _train(0, 1)
    assert alone["loss.centre"].abs().max() > 0.01
    for name, expected in alone.items():
        torch.testing.assert_close(states[0][name], expected, rtol=1e-7, atol=1e-9, msg=name)


def test_workers_stay_equal(states):
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
