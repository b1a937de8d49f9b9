import math

import pytest

from rayreid.pretraining.learning import LearningWatch

CHANCE = math.log(64)
STEPS, EPOCHS = 40, 4


def rows(losses, probes, ranks=(10.0, 10.0)):
    """Rows of a run: its probe before the first step, losses of every step, its probe at the end."""
    yield {"step": -1, "epoch": 0.0, "probe_mAP": probes[0], "probe_effective_rank": ranks[0]}
    for step in range(STEPS):
        yield {"step": step, "epoch": (step + 1) * EPOCHS / STEPS, "loss": losses[step]}
    yield {"step": STEPS - 1, "epoch": float(EPOCHS), "probe_mAP": probes[1], "probe_effective_rank": ranks[1]}


def told(chance, *arguments, probed=True, **options):
    watch = LearningWatch(STEPS, EPOCHS, probed, chance)
    found = [watch(row) for row in rows(*arguments, **options) if probed or "probe_mAP" not in row]
    said = [text for text in found if text]
    assert not said or (found[-1] == said[0] and len(said) == 1)  # once, at the end
    return said[0] if said else ""


FALLING = [CHANCE * (1 - step / 100) for step in range(STEPS)]
FLAT = [CHANCE] * STEPS


def test_a_run_that_learns_is_nothing_to_tell():
    assert told(CHANCE, FALLING, (0.05, 0.2)) == ""
    assert told(None, FLAT, (0.05, 0.2)) == ""


def test_a_probe_that_does_not_rise_is_told():
    assert "its probe went from 20.00 to 19.00 mAP" in told(None, FALLING, (0.2, 0.19))
    assert "its probe went from 20.00 to 20.00 mAP" in told(None, FALLING, (0.2, 0.2))


def test_a_rise_no_larger_than_that_of_features_which_learn_nothing_is_told():
    assert "its probe went from 1.07 to 1.09 mAP" in told(None, FALLING, (0.0107, 0.0109))  # as in 2,115 steps of DINO
    assert told(None, FALLING, (0.0644, 0.073)) == ""


def test_a_loss_at_chance_in_the_last_quarter_is_told():
    assert "within 1 % of chance (4.159)" in told(CHANCE, FLAT, (0.05, 0.2))
    late = [*FLAT[:-1], 0.9 * CHANCE]
    assert told(CHANCE, late, (0.05, 0.2)) == ""
    early = [0.5 * CHANCE] * 30 + [1.005 * CHANCE] * 10
    assert "within 1 % of chance" in told(CHANCE, early, (0.05, 0.2))


def test_a_single_prototype_has_a_chance_of_zero():
    assert "within 1 % of chance (0.000)" in told(0.0, [0.0] * STEPS, (0.05, 0.2))
    assert told(0.0, FALLING, (0.05, 0.2)) == ""


def test_without_a_probe_the_loss_decides_at_the_last_step():
    assert "within 1 % of chance" in told(CHANCE, FLAT, (0, 0), probed=False)
    assert told(CHANCE, FALLING, (0, 0), probed=False) == ""


@pytest.mark.parametrize(("ranks", "falls"), [((10.0, 8.9), True), ((10.0, 9.1), False), ((10.0, 30.0), False)])
def test_a_falling_effective_rank_is_told_where_the_probe_does_not_rise(ranks, falls):
    said = told(None, FALLING, (0.05, 0.04), ranks=ranks)
    assert ("effective rank of its features fell from 10.0 to 8.9" in said) == falls
    assert told(None, FALLING, (0.05, 0.2), ranks=ranks) == ""


def test_all_signs_stand_in_one_sentence():
    said = told(CHANCE, FLAT, (0.2, 0.1), ranks=(10.0, 2.0))
    assert said.count(";") == 2 and "\n" not in said


def test_the_last_probe_of_a_run_may_be_inside_an_epoch():
    watch = LearningWatch(5, 5 / 3, True, None)
    probes = [{"step": step, "epoch": epoch, "probe_mAP": 0.2} for step, epoch in ((-1, 0.0), (2, 1.0), (4, 5 / 3))]
    assert [bool(watch(row)) for row in probes] == [False, False, True]
