import pytest

from rayreid.errors import UserError
from rayreid.pretraining.dino_schedules import DINOSchedules


def schedules(**options) -> DINOSchedules:
    return DINOSchedules(**{"epochs": 4, "steps_per_epoch": 3, "lr": 1e-3, "warmup_epochs": 0, **options})


def test_rates_begin_and_end_where_the_paper_has_them():
    first, last = (schedules(warmup_epochs=1).at(step) for step in (0, 12))
    assert first == pytest.approx((0.0, 0.04, 0.996, 0.04))
    assert last == pytest.approx((1e-6, 0.4, 1.0, 0.04))
    assert schedules(warmup_epochs=1).at(2).lr == pytest.approx(1e-3)


def test_a_run_may_end_inside_an_epoch():
    part = schedules(epochs=10 / 3, warmup_epochs=4 / 3)
    assert part.at(10) == pytest.approx((1e-6, 0.4, 1.0, 0.04))
    assert [part.at(step).lr for step in (0, 3)] == pytest.approx([0.0, 1e-3])
    whole = DINOSchedules(epochs=10, steps_per_epoch=1, lr=1e-3, warmup_epochs=4)
    assert [part.at(step) for step in range(10)] == [whole.at(step) for step in range(10)]


def test_teacher_temperature_warms_up_by_epoch():
    warming = schedules(warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=2)
    assert [warming.epoch(step) for step in (0, 2, 3, 5, 11)] == [0, 0, 1, 1, 3]
    assert [warming.at(step).teacher_temp for step in (0, 2, 3, 5, 11)] == [0.04, 0.04, 0.07, 0.07, 0.07]


def test_more_warmup_than_epochs_is_refused():
    with pytest.raises(UserError, match="warmup_epochs 10 is more than epochs 4"):
        schedules(warmup_epochs=10)
