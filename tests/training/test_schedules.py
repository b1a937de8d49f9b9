import numpy as np
import pytest

from rayreid.training.schedules import Constant, EpochCosine, EpochSteps, LinearWarmup, WarmupCosine


def test_dino_schedules_equal_the_published_ones(golden):
    case = golden("dino_schedules.npz")
    meta = case.meta
    steps = meta["epochs"] * meta["iters_per_epoch"]
    lr = WarmupCosine(
        peak=meta["base_lr"] * meta["global_batch"] / 256,
        final=meta["min_lr"],
        steps=steps,
        warmup_steps=meta["warmup_epochs"] * meta["iters_per_epoch"],
    )
    weight_decay = WarmupCosine(*meta["wd"], steps=steps)
    momentum = WarmupCosine(meta["momentum"], 1.0, steps=steps)
    for schedule, expected in ((lr, case["lr"]), (weight_decay, case["wd"]), (momentum, case["mom"])):
        assert len(expected) == steps
        np.testing.assert_allclose([schedule(step) for step in range(steps)], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps_per_epoch", [1, 3])
def test_finetuning_rate_equals_the_published_one(golden, steps_per_epoch):
    case = golden("finetune_lr.npz")
    meta, base = case.meta, case.meta["base_lr"]

    def factor(name):
        return float(meta[name].removesuffix("*base_lr"))

    schedule = EpochCosine(
        peak=base,
        start=factor("warmup_init") * base,
        floor=factor("lr_min") * base,
        epochs=meta["epochs"],
        warmup_epochs=meta["warmup_epochs"],
        steps_per_epoch=steps_per_epoch,
    )
    steps = range(len(case["lr"]) * steps_per_epoch)
    expected = np.repeat(case["lr"], steps_per_epoch)
    np.testing.assert_allclose([schedule(step) for step in steps], expected, rtol=0, atol=1e-12)


def test_finetuning_rates_of_weights_and_biases(golden):
    case = golden("supervised_trajectory_ics.npz")
    meta, base = case.meta, case.meta["base_lr"]
    for factor, expected in ((1, case["lr_weight"]), (meta["bias_lr_factor"], case["lr_bias"])):
        schedule = EpochCosine(
            factor * base,
            0.01 * base,
            0.002 * base,
            meta["epochs"],
            meta["warmup_epochs"],
            meta["iters_per_epoch"],
        )
        np.testing.assert_allclose([schedule(t) for t in range(len(expected))], expected, rtol=0, atol=1e-12)


def test_steps_beyond_the_end_keep_the_last_value():
    assert WarmupCosine(1.0, 0.25, steps=10, warmup_steps=2)(1000) == pytest.approx(0.25)
    assert EpochCosine(1.0, 0.1, 0.25, epochs=10, warmup_epochs=2)(1000) == pytest.approx(0.25)
    assert LinearWarmup(0.04, 0.07, steps=3)(1000) == 0.07


def test_linear_warmup_reaches_its_end_at_its_last_step():
    values = [LinearWarmup(0.04, 0.07, steps=4)(step) for step in range(6)]
    np.testing.assert_allclose(values, [0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert LinearWarmup(0.04, 0.07, steps=0)(0) == 0.07


def test_constant_does_not_move():
    assert {Constant(0.5)(step) for step in (0, 7, 10**6)} == {0.5}


def test_warmup_of_every_step_ends_in_final():
    schedule = WarmupCosine(1.0, 0.25, steps=4, warmup_steps=4)
    assert [schedule(step) for step in (0, 3, 4)] == [0.0, 1.0, 0.25]


def test_epoch_steps_fall_between_epochs():
    schedule = EpochSteps(1.0, 0.1, every=20, steps_per_epoch=3)
    np.testing.assert_allclose([schedule(3 * epoch) for epoch in (0, 19, 20, 39, 40, 49)], [1, 1, 0.1, 0.1, 0.01, 0.01])
    assert schedule(59) == 1.0
