"""What two workers must agree on, each with a folder and images of its own."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_loop import CPU, FEATURES, Tiny, settings

from gloo_workers import WORLD
from rayreid.errors import UserError
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.guard import NonFiniteLossError
from rayreid.training.loop import Batch, train


def _source(rank: int, poisoned: tuple[int, ...] = (), started: list[int] | None = None):
    """Batches whose keys tell rank and step; those of the poisoned ranks hold a NaN in step 1."""

    def batch(step: int) -> Batch:
        images = torch.full((2, FEATURES), float(rank + step))
        images[0, 0] = torch.nan if step == 1 and rank in poisoned else 1.0
        return Batch([f"{rank}/{step}.jpg"], (images, torch.zeros(2)))

    def start_at(start: int):
        if started is not None:
            started.append(start)
        return (batch(step) for step in range(start, 10))

    return start_at


def _message(rank: int, poisoned: tuple[int, ...]) -> str:
    try:
        train(Tiny(dropout=0), _source(rank, poisoned), settings(), CPU)
    except NonFiniteLossError as error:
        return str(error)
    return "no error"


def _resume(rank: int, folder: Path) -> tuple[list[int], str]:
    """Where this worker started from, and the error it ended with; the run ends after step 1, the checkpoint."""
    started: list[int] = []
    source, ends = _source(rank, started=started), settings(epochs=1, steps_per_epoch=1)
    try:
        train(Tiny(dropout=0), source, ends, CPU, Checkpoints(folder))
    except UserError as error:
        return started, str(error)
    return started, ""


def _worker(rank: int, folder: Path) -> dict:
    results = {f"poisoned {ranks}": _message(rank, ranks) for ranks in ((1,), (0, 1))}
    results["resumed"] = _resume(rank, folder / "seen differently" / str(rank))
    results["missing"] = _resume(rank, folder / "missing" / str(rank))
    dist.destroy_process_group()
    results["threads"] = [thread.read_text().strip() for thread in Path("/proc/self/task").glob("*/comm")]
    return results


def _save(folder: Path, *steps: int) -> Checkpoints:
    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder)
    for step in steps:
        method = Tiny()
        state = {"method": method.state_dict(), "optimizer": method.build_optimizer().state_dict(), "scaler": {}}
        checkpoints.save(step, {"step": step, "seconds": 1.0, **state})
    return checkpoints


@pytest.fixture(scope="module")
def workers(tmp_path_factory, gloo):
    folder = tmp_path_factory.mktemp("workers")
    for rank in range(WORLD):
        _save(folder / "seen differently" / str(rank), 1, 2)
    (folder / "seen differently" / "0" / "00000002.pt").write_bytes(b"half")
    _save(folder / "missing" / "0", 1)
    return gloo(_worker, folder)


def test_a_loss_that_is_not_finite_on_one_worker_is_told_by_all_with_that_worker_s_images(workers):
    first, second = (worker["poisoned (1,)"] for worker in workers)
    assert first == second
    assert "nan at step 1 on 1 of 2 workers" in first
    assert "batch of worker 1: 1/1.jpg" in first and "0/1.jpg" not in first


def test_where_all_losses_are_not_finite_it_says_so(workers):
    first, second = (worker["poisoned (0, 1)"] for worker in workers)
    assert first == second
    assert "on 2 of 2 workers" in first and "batch of worker 0: 0/1.jpg" in first


def test_all_workers_resume_from_the_checkpoint_that_worker_0_sees_whole(workers):
    assert [worker["resumed"] for worker in workers] == [([1], ""), ([1], "")]


def test_a_worker_that_does_not_see_it_says_so_and_does_not_start_afresh(workers):
    assert workers[0]["missing"] == ([1], "")
    started, message = workers[1]["missing"]
    assert started == []
    assert "00000001.pt" in message and "RAYREID_ROOT" in message


def test_the_destroyed_group_leaves_no_threads_that_could_abort_at_the_end(workers):
    assert [thread for worker in workers for thread in worker["threads"] if "gloo" in thread] == []
