import pytest

from rayreid.training.meter import Meter


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("rayreid.training.meter.time.monotonic", lambda: now[0])
    return now


def test_pace_is_since_the_last_reading_and_cost_since_the_start(clock):
    meter = Meter(gpus=4)
    meter.count(30, 1.0)
    clock[0] += 10
    assert meter.read() == pytest.approx({"images_per_second": 3, "wait": 0.1, "gpu_hours": 40 / 3600})
    meter.count(10, 0.0)
    clock[0] += 10
    assert meter.read() == pytest.approx({"images_per_second": 1, "wait": 0, "gpu_hours": 80 / 3600})


def test_cost_goes_on_from_an_earlier_process(clock):
    meter = Meter(gpus=2)
    meter.spent = 3600.0
    clock[0] += 1800
    assert meter.seconds() == 5400
    assert meter.read()["gpu_hours"] == 3


def test_cpus_cost_no_gpu_hours(clock):
    meter = Meter(gpus=0)
    clock[0] += 10
    assert meter.read()["gpu_hours"] == 0
