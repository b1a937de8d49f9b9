"""The protocol of writers, under thousands of random schedules: see `lease_model`."""

import pytest

import lease_model
from lease_model import explore

CASTS = [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]


@pytest.mark.parametrize(("writers", "machines"), CASTS)
def test_no_schedule_mixes_results_or_finishes_twice(writers, machines):
    wrong, outcomes = explore(range(400), writers, machines)
    assert wrong == []
    assert outcomes["finished"] > 300 and outcomes["found"] and outcomes["killed"]
    assert machines == 1 or outcomes["refused"]


def test_the_model_notices_a_writer_that_is_not_refused(monkeypatch):
    monkeypatch.setattr(lease_model, "check_held", lambda place, token: None)
    wrong, _ = explore(range(400), 2, 2)
    assert any("its files are of several writers" in text for text in wrong)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(("writers", "machines"), CASTS)
def test_no_schedule_of_a_hundred_thousand_mixes_results_or_finishes_twice(writers, machines):
    wrong, _ = explore(range(400, 20_400), writers, machines)
    assert wrong == []
