from rayreid.pipeline.forecast.stand_ins import SearchedKey, StandIns

LIST, RANGE = SearchedKey(frozenset("ab"), 2), SearchedKey(frozenset("cde"), None)
EVERY = frozenset("abcde")


def test_what_depends_on_nothing_is_made_once():
    found = StandIns(9, (LIST, RANGE)).draws(["abcde"], EVERY)
    assert found.made == 1 and round(found.share("abcde"), 9) == 1


def test_what_depends_on_a_list_is_made_once_for_each_value():
    found = StandIns(9, (LIST, RANGE)).draws(["acde", "b"], EVERY)
    assert found.made == 2 and found.share("acde") == found.share("b") == 0.5


def test_what_depends_on_a_range_is_made_for_each_trial():
    found = StandIns(9, (LIST, RANGE)).draws(["abc", "d", "e"], EVERY)
    assert found.made == 9 and round(found.share("d"), 9) == round(1 / 3, 9)


def test_what_only_some_values_need_is_made_for_these():
    found = StandIns(9, (LIST, RANGE)).draws(["b"], EVERY)
    assert (found.made, found.share("b")) == (9, 0.5)


def test_no_more_than_the_trials_are_made():
    assert StandIns(1, (LIST, RANGE)).draws(["acde", "b"], EVERY).made == 1


def test_experiments_that_cannot_be_planned_do_not_count():
    found = StandIns(9, (LIST, RANGE)).draws(["acd"], frozenset("acd"))
    assert found.made == 1 and round(found.share("acd"), 9) == 1
