"""Stages that are killed, fail or lose power at an operation of the disk: the next command gets over each."""

import pytest

from crash_points import CrashPoints
from crash_scenarios import scenarios

NAMES = list(scenarios())


def wrong(name, folder, every, first=0) -> list[str]:
    """Return what is wrong at every so many points of a scenario."""
    with CrashPoints(scenarios()[name], folder) as points:
        found = [one for place in points.places[first::every] for one in points.at(place)]
    print(f"{name}: {len(points.operations)} operations, {points.points} points, {points.states} states")
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name != "training"])  # which takes half a minute at least
def test_some_points_of_each_stage(name, tmp_path):
    assert not wrong(name, tmp_path, every=61, first=37)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "every"), [(name, 27 if name == "training" else 9) for name in NAMES])
def test_many_points_of_each_stage(name, every, tmp_path):
    assert not wrong(name, tmp_path, every)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_the_points_of_each_stage(name, tmp_path):
    assert not wrong(name, tmp_path, every=1)
