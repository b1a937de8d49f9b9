"""The guard as it works on a GPU: it reads a step's flags while the next one runs, or when something asks."""

from pathlib import Path
from unittest.mock import PropertyMock, patch

import pytest
import torch
from test_loop import BATCH, CPU, FEATURES, Tiny, batches, settings

from rayreid.training.checkpoint import Checkpoints
from rayreid.training.guard import Guard, NonFiniteLossError, Part
from rayreid.training.loop import Batch, LoopState, train

STEPS = 6
deferred = patch.object(LoopState, "_deferred", new_callable=PropertyMock, return_value=True)


def _watch(guard: Guard, step: int, loss: float, gradient: float = 1.0) -> None:
    parts = [Part([f"{step}/a.jpg", f"{step}/b.jpg"], torch.tensor(loss))]
    guard.watch(step, parts, [torch.tensor(gradient)], {"lr": 0.1}, 1.0)


def _ended(source, folder: Path, **changes) -> tuple[NonFiniteLossError, list[float], list[int]]:
    """The error that a run ends with, the steps of its rows, and its checkpoints."""
    rows: list[dict[str, float]] = []
    checkpoints = Checkpoints(folder, keep=STEPS)
    with pytest.raises(NonFiniteLossError) as caught:
        ends = settings(steps_per_epoch=STEPS, epochs=1, **changes)
        train(Tiny(dropout=0), source, ends, CPU, checkpoints, rows.append)
    return caught.value, [row["step"] for row in rows], sorted(int(path.stem) for path in folder.glob("*.pt"))


def test_a_step_is_clean_until_it_is_known_not_to_be():
    guard = Guard()
    assert guard.clean()
    _watch(guard, 0, 1.0)
    assert guard.clean()
    guard.settle()
    _watch(guard, 1, torch.nan)
    assert not guard.clean() and not guard.clean()
    with pytest.raises(
        NonFiniteLossError, match=r"the loss is nan at step 1 \(lr 0\.1, .*1/a\.jpg, 1/b\.jpg"
    ) as caught:
        guard.settle()
    assert caught.value.keys == ["1/a.jpg", "1/b.jpg"]


def test_a_gradient_that_is_not_finite_counts_too():
    guard = Guard()
    _watch(guard, 3, 1.0, torch.inf)
    assert not guard.clean()
    with pytest.raises(NonFiniteLossError, match="a gradient is not finite at step 3"):
        guard.settle()


@pytest.mark.parametrize("poison", [0, 3, STEPS - 1])
def test_one_step_late_the_run_ends_the_same_way(tmp_path, poison):
    error, rows, saved = _ended(batches(poison=poison), tmp_path / "at once")
    with deferred:
        late, late_rows, late_saved = _ended(batches(poison=poison), tmp_path / "late")
    assert (str(late), late.keys) == (str(error), error.keys)
    assert late_rows == rows == list(range(poison))
    assert late_saved == saved == list(range(1, poison + 1))


def test_one_more_step_has_been_made_by_then():
    method = Tiny(dropout=0)
    with deferred, pytest.raises(NonFiniteLossError, match="step 2"):
        train(method, batches(poison=2), settings(steps_per_epoch=STEPS, epochs=1), CPU)
    assert method.called[-1] == ("after", 3)


def test_a_sound_run_is_the_same_one_step_late(tmp_path):
    results = []
    for late in (False, True):
        rows: list[dict[str, float]] = []
        method = Tiny()
        with patch.object(LoopState, "_deferred", late):
            train(method, batches(), settings(), CPU, Checkpoints(tmp_path / str(late)), rows.append)
        results.append((method.state_dict(), [row["loss"] for row in rows]))
    (state, losses), (late_state, late_losses) = results
    assert losses == late_losses
    assert all(torch.equal(late_state[name], value) for name, value in state.items())


def _source(rank: int):
    """Batches of which that of worker 1 at step 2 holds a NaN."""

    def start_at(start: int):
        for step in range(start, STEPS):
            images = torch.full((BATCH, FEATURES), float(rank + step + 1))
            images[0, 0] = torch.nan if (step, rank) == (2, 1) else 1.0
            yield Batch([f"{rank}/{step}.jpg"], (images, torch.zeros(BATCH)))

    return start_at


def _worker(rank: int, folder: Path) -> dict[bool, tuple[str, list[str], list[float], list[int]]]:
    results = {}
    for late in (False, True):
        with patch.object(LoopState, "_deferred", late):
            error, rows, saved = _ended(_source(rank), folder / f"{rank} {late}")
        results[late] = (str(error), error.keys, rows, saved)
    return results


def test_two_workers_end_with_the_same_message_one_step_late(gloo, tmp_path):
    first, second = gloo(_worker, tmp_path)
    assert first[True] == first[False] and second[True] == second[False]
    message, keys, rows, saved = first[True]
    assert second[True][:2] == (message, keys)
    assert keys == ["1/2.jpg"] and "nan at step 2 on 1 of 2 workers" in message
    assert (rows, saved) == ([0, 1], [1, 2])
