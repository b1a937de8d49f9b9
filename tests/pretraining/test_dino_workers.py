"""Two workers with half of the batch each do what one does with all of it, over the published trajectories."""

import numpy as np
import pytest
import torch
from trajectory import TRAJECTORIES, Case, crops_of, method_of, run

from gloo_workers import WORLD
from rayreid.training.parallel import all_reduce_sum

CASES = [(stem, dtype) for stem in TRAJECTORIES for dtype in (torch.float64, torch.float32)]


def follow(case, stem: str, dtype: torch.dtype, rank: int, world: int) -> dict[str, torch.Tensor]:
    """The state after the trajectory on a worker's share of the images, and under `losses` all workers' mean losses."""
    method = method_of(case, stem, dtype)
    optimizer = method.build_optimizer()
    images = case["crops_global"].shape[2]
    share = slice(rank * images // world, (rank + 1) * images // world)
    losses = [run(method, optimizer, step, [crops_of(case, step, dtype, share)]) for step in range(len(case["loss"]))]
    return {**method.state_dict(), "losses": all_reduce_sum(torch.tensor(losses, dtype=torch.float64)) / world}


def _worker(rank: int, cases: dict) -> dict[tuple[str, torch.dtype], dict[str, torch.Tensor]]:
    return {key: follow(cases[key[0]], *key, rank, WORLD) for key in CASES}


@pytest.fixture(scope="module")
def cases(golden):
    return {stem: Case(golden(file)) for stem, file in TRAJECTORIES.items()}


@pytest.fixture(scope="module")
def states(gloo, cases):
    return gloo(_worker, cases)


@pytest.mark.parametrize(("stem", "dtype"), CASES)
def test_two_workers_have_the_losses_of_one(states, cases, stem, dtype):
    expected = cases[stem]["loss"]
    alone = follow(cases[stem], stem, dtype, 0, 1)
    losses = states[0][stem, dtype]["losses"]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(losses, alone["losses"], rtol=tolerance)
    np.testing.assert_allclose(losses, expected, rtol=max(tolerance, 1e-7))
    if dtype == torch.float64:  # clipping, AdamW, teacher, centre and running statistics, too
        for name, value in alone.items():
            torch.testing.assert_close(states[0][stem, dtype][name], value, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize(("stem", "dtype"), CASES)
def test_workers_stay_equal(states, stem, dtype):
    for name, value in states[0][stem, dtype].items():
        assert torch.equal(states[1][stem, dtype][name], value), name


def test_the_trajectories_clip_and_move_the_centre(states, cases):
    """Else the tests above would not notice a worker that did neither."""
    case = cases["ics"]
    method = method_of(case, "ics", torch.float64)
    method.clip = None
    optimizer = method.build_optimizer()
    losses = [run(method, optimizer, s, [crops_of(case, s, torch.float64)]) for s in range(len(case["loss"]))]
    assert abs(losses[-1] / case["loss"][-1] - 1) > 1e-7
    assert states[0]["ics", torch.float64]["loss.centre"].abs().max() > 1e-3
