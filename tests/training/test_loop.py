import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from rayreid.errors import UserError
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.gradients import gradient_norms, norm_scalars
from rayreid.training.guard import NonFiniteLossError
from rayreid.training.loop import Batch, LoopSettings, autocast, resolve_precision, train

CPU = torch.device("cpu")
EPOCHS, STEPS_PER_EPOCH, BATCH, FEATURES = 2, 3, 8, 6
STEPS = EPOCHS * STEPS_PER_EPOCH
NORMS = ("grad_norm", "grad_norm_max")


class Tiny(nn.Module):
    """A linear model with all that has a state: dropout, AdamW's moments, a scheduled rate, a moving average."""

    def __init__(self, dropout: float = 0.5, init: int = 0):
        super().__init__()
        torch.manual_seed(init)
        self.linear = nn.Linear(FEATURES, 1)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("average", torch.zeros(1, FEATURES))
        self.called: list[tuple[str, int]] = []

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def set_schedules(self, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        self.called.append(("schedules", step))
        return {"lr": 0.1 / (1 + step)}

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        out = self.linear(self.dropout(images)).squeeze(1)
        return {"loss": (out - labels).square().mean(), "spread": out.mean()}

    def before_update(self, step: int) -> dict[str, Tensor]:
        self.called.append(("before", step))
        return norm_scalars(gradient_norms(self.parameters()))

    def after_update(self, step: int) -> None:
        self.called.append(("after", step))
        self.average.mul_(0.5).add_(self.linear.weight.detach(), alpha=0.5)


class KilledError(Exception):
    pass


def content(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(BATCH, FEATURES, generator=generator), torch.randn(BATCH, generator=generator)


def batches(parts: int = 1, until: int | None = None, poison: int | None = None) -> Callable[[int], Iterator[Batch]]:
    """Micro-batches as a function of the step; the process is killed before step `until`; step `poison` has a NaN."""

    def start_at(start: int) -> Iterator[Batch]:
        step = start
        while True:
            if step == until:
                raise KilledError
            images, labels = content(step)
            if step == poison:
                images[-1, 0] = torch.nan
            keys = [f"{step}/{place}.jpg" for place in range(BATCH)]
            for rows in torch.arange(BATCH).chunk(parts):
                yield Batch([keys[row] for row in rows], (images[rows], labels[rows]), wait=0.0)
            step += 1

    return start_at


def settings(**changes) -> LoopSettings:
    values = {"steps_per_epoch": STEPS_PER_EPOCH, "epochs": EPOCHS, "log_every": 1, "checkpoint_seconds": -1.0}
    return LoopSettings(**{**values, **changes})


def run(method: Tiny, checkpoints: Checkpoints | None = None, source=None, **changes) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    train(method, source or batches(), settings(**changes), CPU, checkpoints, rows.append)
    return rows


def what_was_computed(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: row[name] for name in ("step", "epoch", "loss", "spread", "lr", *NORMS)} for row in rows]


def equal(one: nn.Module, other: nn.Module) -> bool:
    state, expected = one.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


# Resuming


@pytest.mark.parametrize("killed_at", range(STEPS + 1))
def test_a_run_resumed_at_any_step_is_the_uninterrupted_run(tmp_path, killed_at):
    whole = Tiny()
    expected = run(whole)
    first, checkpoints = Tiny(), Checkpoints(tmp_path / "checkpoints")
    if killed_at < STEPS:
        with pytest.raises(KilledError):
            run(first, checkpoints, batches(until=killed_at))
    else:
        run(first, checkpoints)
    torch.manual_seed(99)
    resumed = Tiny(init=1 if killed_at else 0)  # what it starts from is overwritten, if there is a checkpoint
    rows = run(resumed, checkpoints)
    assert equal(resumed, whole)
    assert what_was_computed(rows) == what_was_computed(expected)[killed_at:]
    assert [step for name, step in resumed.called if name == "after"] == list(range(killed_at, STEPS))


def test_the_resumed_run_would_differ_were_anything_lost(tmp_path):
    """The state that the test above compares depends on everything that a checkpoint holds."""
    whole = Tiny()
    run(whole)
    for lost in ("optimizer", "method", "seed"):
        checkpoints = Checkpoints(tmp_path / lost)
        with pytest.raises(KilledError):
            run(Tiny(), checkpoints, batches(until=4))
        state = checkpoints.load(4)
        if lost == "optimizer":
            state["optimizer"]["state"] = {}
        elif lost == "method":
            state["method"] = Tiny(init=1).state_dict()
        checkpoints.save(4, state)
        resumed = Tiny()
        run(resumed, checkpoints, seed=1 if lost == "seed" else 0)
        assert not equal(resumed, whole), lost


def test_a_truncated_newest_checkpoint_costs_a_step_not_the_run(tmp_path):
    whole = Tiny()
    run(whole)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(KilledError):
        run(Tiny(), checkpoints, batches(until=4))
    newest = max(checkpoints.folder.glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = Tiny(init=1)
    rows = run(resumed, checkpoints)
    assert [row["step"] for row in rows] == [3, 4, 5]
    assert equal(resumed, whole)


def test_checkpoints_are_written_after_every_epoch_and_after_a_time(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state, epoch: saved.append((step, epoch)))
    run(Tiny(), Checkpoints(tmp_path), checkpoint_seconds=3600.0)
    assert saved == [(3, 1), (6, 2)]
    saved.clear()
    run(Tiny(), Checkpoints(tmp_path), checkpoint_seconds=-1.0)
    assert saved == [(1, None), (2, None), (3, 1), (4, None), (5, None), (6, 2)]


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(KilledError):
        run(Tiny(), checkpoints, batches(until=2))
    other = Tiny()
    other.linear = nn.Linear(FEATURES + 1, 1)
    with pytest.raises(UserError, match="checkpoints: a checkpoint of another architecture"):
        run(other, checkpoints)


def test_a_run_that_was_complete_does_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    run(Tiny(), checkpoints)
    assert run(Tiny(), checkpoints, batches(until=STEPS)) == []


# What a step is


def test_a_step_calls_the_method_in_order():
    method = Tiny()
    run(method, epochs=1)
    assert method.called == [(name, step) for step in range(3) for name in ("schedules", "before", "after")]


def test_training_without_dropout_is_plain_adamw():
    method, by_hand = Tiny(dropout=0), Tiny(dropout=0)
    run(method)
    optimizer = by_hand.build_optimizer()
    for step in range(STEPS):
        by_hand.set_schedules(optimizer, step)
        optimizer.zero_grad()
        by_hand.losses(content(step))["loss"].backward()
        optimizer.step()
    torch.testing.assert_close(method.linear.weight, by_hand.linear.weight)
    torch.testing.assert_close(method.linear.bias, by_hand.linear.bias)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_micro_batches_are_the_whole_batch(parts):
    whole, accumulated = Tiny(dropout=0), Tiny(dropout=0)
    expected = run(whole)
    rows = run(accumulated, source=batches(parts), accumulate=parts)
    torch.testing.assert_close(accumulated.state_dict(), whole.state_dict())
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected])
    assert [row["spread"] for row in rows] == pytest.approx([row["spread"] for row in expected])
    assert len(accumulated.called) == len(whole.called)


def test_every_step_draws_its_own_dropout_and_every_seed_another():
    def losses(**changes):
        return [row["loss"] for row in run(Tiny(), **changes)]

    assert losses() == losses() != losses(seed=1)
    same = content(0)
    repeated = [row["loss"] for row in run(Tiny(), source=lambda start: (Batch(["a"], same) for _ in range(STEPS)))]
    assert len(set(repeated)) == STEPS


def test_any_seed_will_do():
    assert len(run(Tiny(), seed=2**63 - 1)) == STEPS
    method, by_hand = Tiny(), Tiny()
    run(method, epochs=1, steps_per_epoch=1, seed=5)
    torch.manual_seed(5 * 1_000_003 * 65_537)  # what a small seed gives is not to change
    optimizer = by_hand.build_optimizer()
    by_hand.losses(content(0))["loss"].backward()
    optimizer.step()
    assert torch.equal(method.linear.weight, by_hand.linear.weight)


# What is logged


def test_logged_rows():
    method = Tiny(dropout=0)
    rows = run(method)
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert [row["epoch"] for row in rows] == pytest.approx([(step + 1) / STEPS_PER_EPOCH for step in range(STEPS)])
    assert [row["lr"] for row in rows] == [0.1 / (1 + step) for step in range(STEPS)]
    fresh = Tiny(dropout=0).losses(content(0))
    assert rows[0]["loss"] == pytest.approx(fresh["loss"].item())
    assert rows[0]["spread"] == pytest.approx(fresh["spread"].item())
    names = {"step", "epoch", "loss", "spread", "lr", *NORMS, "images_per_second", "wait", "gpu_hours"}
    for row in rows:
        assert set(row) == names | ({"seconds_epoch"} if row["epoch"] in (1, 2) else set())
        assert row["images_per_second"] > 0
        assert row["wait"] == 0


def test_rows_are_logged_now_and_then_and_at_every_epoch_s_end():
    rows = run(Tiny(), steps_per_epoch=5, epochs=2, log_every=4)
    assert [row["step"] for row in rows] == [3, 4, 7, 9]


def test_the_share_of_waiting_and_the_pace_are_of_the_time_since_the_last_row(monkeypatch):
    ticks = iter(float(second) for second in range(1000))
    monkeypatch.setattr("rayreid.training.loop.time.monotonic", lambda: next(ticks))

    def source(start):
        return (Batch(["a", "b"], content(step), wait=0.25) for step in range(STEPS))

    rows = run(Tiny(), source=source, log_every=3)
    for row in rows:
        # Three steps of two images and a quarter of a second's wait each.
        assert row["images_per_second"] / row["wait"] == pytest.approx(6 / 0.75)


def test_at_its_end_an_epoch_says_how_long_it_took(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("rayreid.training.loop.time.monotonic", lambda: clock[0])

    def source(start):
        for step in range(start, STEPS):
            clock[0] += 1 + step
            yield Batch(["a", "b"], content(step))

    durations = [row["seconds_epoch"] for row in run(Tiny(), source=source) if "seconds_epoch" in row]
    assert durations == [1 + 2 + 3, 4 + 5 + 6]


# After an epoch


def test_after_each_epoch_and_its_checkpoint_the_caller_is_asked_and_its_figures_logged(tmp_path):
    checkpoints, asked = Checkpoints(tmp_path), []

    def probe(epochs: int) -> dict[str, float]:
        asked.append((epochs, checkpoints.newest()))
        return {"probe": epochs / 10} if epochs == 2 else {}

    rows: list[dict[str, float]] = []
    train(Tiny(), batches(), settings(), CPU, checkpoints, rows.append, probe)
    assert asked == [(0, 0), (1, STEPS_PER_EPOCH), (2, 2 * STEPS_PER_EPOCH)]
    assert rows[-1] == {"step": STEPS - 1, "epoch": 2.0, "probe": 0.2}
    assert [row["step"] for row in rows if "loss" in row] == list(range(STEPS))


def test_a_run_that_ends_inside_an_epoch_is_logged_saved_and_asked_there(tmp_path):
    checkpoints, asked = Checkpoints(tmp_path), []

    def probe(epochs: float) -> dict[str, float]:
        asked.append((epochs, checkpoints.newest()))
        return {"probe": epochs}

    rows: list[dict[str, float]] = []
    length = settings(epochs=5 / STEPS_PER_EPOCH, log_every=100, checkpoint_seconds=1e9)
    train(Tiny(), batches(), length, CPU, checkpoints, rows.append, probe)
    assert asked == [(0, 0), (1, 3), (5 / 3, 5)]
    assert [(row["step"], row["epoch"]) for row in rows if "loss" in row] == [(2, 1.0), (4, 5 / 3)]
    assert rows[-1] == {"step": 4, "epoch": 5 / 3, "probe": 5 / 3}
    # A finished run that is started again asks once more, because it may have been interrupted there.
    train(Tiny(init=1), batches(), length, CPU, checkpoints, rows.append, probe)
    assert asked[3:] == [(5 / 3, 5)]


def test_what_the_caller_does_after_an_epoch_changes_no_training():
    expected, asked = Tiny(), Tiny()
    run(expected)
    train(asked, batches(), settings(), CPU, after_epoch=lambda epochs: {"probe": torch.rand(3).sum().item()})
    assert equal(asked, expected)


@pytest.mark.parametrize(("killed_at", "asked_again"), [(2, [1, 2]), (3, [1, 2]), (4, [2])])
def test_a_run_killed_after_an_epoch_asks_again(tmp_path, killed_at, asked_again):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(KilledError):
        run(Tiny(), checkpoints, batches(until=killed_at))
    asked = []
    train(Tiny(), batches(), settings(), CPU, checkpoints, after_epoch=lambda epochs: asked.append(epochs) or {})
    assert asked == asked_again


def test_its_time_counts_in_no_throughput_and_in_no_epoch(monkeypatch):
    clock = [0.0]

    def tick():
        clock[0] += 1
        return clock[0]

    def probe(epochs):
        clock[0] += 1000
        return {}

    monkeypatch.setattr("rayreid.training.loop.time.monotonic", tick)
    rows: list[dict[str, float]] = []
    train(Tiny(), batches(), settings(), CPU, log=rows.append, after_epoch=probe)
    assert all(row["images_per_second"] > BATCH / 100 for row in rows)
    assert all(0 < row["seconds_epoch"] < 1000 for row in rows if row["epoch"] in (1, 2))


# Losses that are not finite


def test_a_loss_that_is_not_finite_names_step_rate_and_images(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    rows: list[dict[str, float]] = []
    with pytest.raises(NonFiniteLossError) as caught:
        train(Tiny(), batches(poison=4), settings(), CPU, checkpoints, rows.append)
    message = str(caught.value)
    assert "nan at step 4 (" in message
    assert "lr 0.02" in message
    assert "4/0.jpg" in message and f"({BATCH} images)" not in message
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert checkpoints.newest() == 4
    state = checkpoints.load(4)
    assert all(value.isfinite().all() for value in state["method"].values())
    assert max(checkpoints.folder.glob("*.pt")).name == "00000004.pt"


def test_of_a_step_s_micro_batches_the_bad_one_is_named_and_many_images_counted():
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*batch: 1/4\.jpg") as caught:
        run(Tiny(), source=batches(parts=2, poison=1), accumulate=2)
    assert caught.value.keys == [f"1/{place}.jpg" for place in range(4, 8)]

    def many(start):
        return iter([Batch([f"{n}.jpg" for n in range(20)], (torch.full((2, FEATURES), torch.inf), torch.zeros(2)))])

    with pytest.raises(NonFiniteLossError, match=r"7\.jpg, … \(20 images\)") as caught:
        run(Tiny(dropout=0), source=many)
    assert len(caught.value.keys) == 20


class Broken(Tiny):
    """Its loss is sound, its gradient is not, in step 4."""

    def before_update(self, step: int) -> dict[str, Tensor]:
        if step == 4:
            self.linear.weight.grad[0, 0] = torch.nan
        return super().before_update(step)


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(NonFiniteLossError, match=r"a gradient is not finite at step 4, though the loss is .*4/0\.jpg"):
        run(Broken(), checkpoints)
    assert checkpoints.newest() == 4
    assert max(checkpoints.folder.glob("*.pt")).name == "00000004.pt"


# fp16: its scaler


def large(until: int | None = None, loss: float = 1.0) -> Callable[[int], Iterator[Batch]]:
    """Images whose gradients overflow fp16 at the scaler's first scale, though their losses do not."""

    def start_at(start: int) -> Iterator[Batch]:
        for batch in batches(until=until)(start):
            images, labels = batch.data
            yield Batch(batch.keys, (images * 20, labels * loss))

    return start_at


def test_fp16_passes_over_a_gradient_that_overflows_and_lowers_its_scale():
    rows = run(Tiny(dropout=0), source=large(), precision="fp16")
    scales = [row["loss_scale"] for row in rows]
    assert scales[0] < 65536 and scales == sorted(scales, reverse=True)
    assert "grad_norm" not in rows[0]  # there was none
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=2)  # the step was not taken
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_fp16_stops_at_a_loss_that_is_infinite_with_the_scale_in_force():
    with pytest.raises(NonFiniteLossError, match=r"the loss is inf at step 0 \(lr 0\.1, loss scale 6\.55e\+04\)"):
        run(Tiny(dropout=0), source=large(loss=1e30), precision="fp16")


@pytest.mark.parametrize("killed_at", range(1, STEPS))
def test_fp16_resumed_at_any_step_is_the_uninterrupted_run(tmp_path, killed_at):
    whole, resumed, checkpoints = Tiny(), Tiny(init=1), Checkpoints(tmp_path)
    expected = run(whole, source=large(), precision="fp16")
    with pytest.raises(KilledError):
        run(Tiny(), checkpoints, large(until=killed_at), precision="fp16")
    rows = run(resumed, checkpoints, large(), precision="fp16")
    assert equal(resumed, whole)
    assert [row["loss_scale"] for row in rows] == [row["loss_scale"] for row in expected][killed_at:]
    assert expected[0]["loss_scale"] < 65536  # a fresh scaler would have begun higher


# Precision


def test_precision_is_the_one_asked_for():
    assert [resolve_precision(name, CPU) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    assert resolve_precision("auto", CPU) in ("fp32", "bf16")
    a = torch.ones(2, 2)
    with autocast("fp32", CPU):
        assert (a @ a).dtype == torch.float32
    with autocast("bf16", CPU):
        assert (a @ a).dtype == torch.bfloat16


def test_fp16_clips_gradients_without_the_loss_scale():
    """The loss is scaled by 65,536; what `before_update` sees must be what it sees in float32."""

    class Watching(Tiny):
        def before_update(self, step: int) -> dict[str, Tensor]:
            self.seen = [p.grad.clone() for p in self.parameters()]
            return super().before_update(step)

    half, exact = Watching(dropout=0), Watching(dropout=0)
    run(half, precision="fp16", epochs=1, steps_per_epoch=1)
    run(exact, epochs=1, steps_per_epoch=1)
    for seen, expected in zip(half.seen, exact.seen, strict=True):
        torch.testing.assert_close(seen, expected, rtol=0.01, atol=0.01)
    torch.testing.assert_close(half.linear.weight, exact.linear.weight, rtol=0, atol=0.01)


def test_parameters_stay_float32_in_bf16():
    method, exact = Tiny(dropout=0), Tiny(dropout=0)
    run(method, precision="bf16")
    run(exact)
    assert all(parameter.dtype == torch.float32 for parameter in method.parameters())
    torch.testing.assert_close(method.linear.weight, exact.linear.weight, rtol=0, atol=0.1)
    assert not torch.equal(method.linear.weight, exact.linear.weight)


# On a GPU


def on_gpu(source: Callable[[int], Iterator[Batch]]) -> Callable[[int], Iterator[Batch]]:
    def start_at(start: int) -> Iterator[Batch]:
        return (Batch(batch.keys, tuple(part.cuda() for part in batch.data)) for batch in source(start))

    return start_at


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.2), ("fp16", 0.05)])
def test_a_gpu_trains_as_a_cpu_does(precision, tolerance):
    expected = run(Tiny(dropout=0), precision=precision)
    rows: list[dict[str, float]] = []
    train(
        Tiny(dropout=0).cuda(), on_gpu(batches()), settings(precision=precision), torch.device("cuda"), log=rows.append
    )
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=tolerance, abs=0.01)
    assert all(row["gpu_hours"] > 0 for row in rows)


@pytest.mark.gpu
def test_on_a_gpu_fp16_passes_over_a_gradient_that_overflows():
    rows: list[dict[str, float]] = []
    ends = settings(precision="fp16")
    train(Tiny(dropout=0).cuda(), on_gpu(large()), ends, torch.device("cuda"), log=rows.append)
    assert rows[0]["loss_scale"] < 65536 and "grad_norm" not in rows[0]


@pytest.mark.gpu
@pytest.mark.parametrize("poison", [0, 1, 4, STEPS - 1])
def test_on_a_gpu_a_loss_that_is_not_finite_ends_the_run_and_is_not_kept(tmp_path, poison):
    rows: list[dict[str, float]] = []
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(NonFiniteLossError, match=rf"nan at step {poison} \(.*{poison}/0\.jpg"):
        train(
            Tiny(dropout=0).cuda(),
            on_gpu(batches(poison=poison)),
            settings(),
            torch.device("cuda"),
            checkpoints,
            rows.append,
        )
    assert [row["step"] for row in rows] == list(range(poison))
    assert checkpoints.newest() == poison
