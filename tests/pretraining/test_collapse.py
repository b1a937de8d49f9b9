import math

import pytest

from rayreid.pretraining.collapse import PATIENCE, CollapseWatch, SpreadWatch

K = 65536
TOP = math.log(K)


def warnings(entropies: dict[int, float], kl: float = 0.01) -> list[tuple[int, str]]:
    """(step, warning) for rows of these entropies, the first of which comes after the first epoch."""
    watch = CollapseWatch(K)
    others = {"kl": kl, "feature_std": 0.1}
    told = [
        (step, watch({"step": step, "epoch": (step + 1) / 1000, "teacher_entropy": entropy, **others}))
        for step, entropy in entropies.items()
    ]
    return [(step, warning) for step, warning in told if warning]


def rows(entropy: float, start: int = 1000, until: int = 3000) -> dict[int, float]:
    return dict.fromkeys(range(start, until, 10), entropy)


@pytest.mark.parametrize(("entropy", "word"), [(TOP, "uniform"), (0.995 * TOP, "uniform"), (0.0, "one prototype")])
def test_an_entropy_at_either_end_is_told_once_when_it_has_stayed(entropy, word):
    ((step, warning),) = warnings(rows(entropy))
    assert step == 1000 + PATIENCE
    assert word in warning and "since step 1000" in warning and "at most 11.1" in warning


@pytest.mark.parametrize("share", [0.02, 0.4, 0.89, 0.98])
def test_a_sound_entropy_is_not_told(share):
    assert warnings(rows(share * TOP)) == []


def test_a_teacher_that_is_sure_of_each_image_is_not_told_while_the_student_errs():
    assert warnings(rows(0.0), kl=0.2) == []
    assert warnings(rows(TOP), kl=0.2) != []


def test_a_passing_state_is_not_told():
    assert warnings({**rows(TOP), **dict.fromkeys(range(1400, 3000, 400), 0.9 * TOP)}) == []
    assert warnings({**rows(TOP, until=1490), **rows(0.0, start=1490, until=1980)}) == []


def test_the_epochs_in_which_the_last_layer_is_frozen_are_not_judged():
    assert warnings(rows(TOP, start=0, until=1000)) == []
    assert [step for step, _ in warnings(rows(TOP, start=0))] == [1000 + PATIENCE]


def test_rows_without_an_entropy_are_passed_over():
    assert CollapseWatch(K)({"step": 9000, "epoch": 9.0, "probe": 0.5}) is None


def spread_warnings(spreads: dict[int, float]) -> list[int]:
    watch = SpreadWatch()
    return [step for step, std in spreads.items() if watch({"step": step, "epoch": 1.0, "feature_std": std})]


def test_features_that_stay_alike_are_told_once():
    assert spread_warnings(rows(0.005)) == [1000 + PATIENCE]


def test_features_that_differ_or_are_alike_for_a_while_are_not_told():
    assert spread_warnings(rows(0.02)) == []
    assert spread_warnings({**rows(0.005), **dict.fromkeys(range(1400, 3000, 400), 0.1)}) == []
    assert SpreadWatch()({"step": 9000, "epoch": 9.0, "probe": 0.5}) is None
