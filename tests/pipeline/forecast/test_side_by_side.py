from rayreid.pipeline.forecast.side_by_side import Task, scheduled, waves


def task(seconds, *needs):
    return Task(seconds, frozenset(needs))


def test_one_place_makes_one_after_another():
    found = scheduled({"a": task(3), "b": task(2, "a"), "c": task(1)}, 1)
    assert found.begins == {"a": 0, "b": 3, "c": 5} and found.seconds == 6


def test_with_two_places_what_needs_nothing_begins_at_once():
    found = scheduled({"pool": task(1), "a": task(4, "pool"), "b": task(3, "pool"), "end": task(1, "a", "b")}, 2)
    assert found.begins == {"pool": 0, "a": 1, "b": 1, "end": 5} and found.seconds == 6
    assert waves(found) == [["pool"], ["a", "b"], ["end"]]


def test_what_is_complete_is_waited_for_by_nobody():
    assert scheduled({"a": task(3, "complete")}, 1).seconds == 3


def test_nothing_takes_no_time():
    assert scheduled({}, 1).seconds == 0 and waves(scheduled({}, 1)) == []
