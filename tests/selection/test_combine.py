"""Combination of strategies: what parts remove, and the mean of their ranks."""

import numpy as np
import pytest

from rayreid.errors import UserError
from rayreid.selection.combine import CombinedRanking, combine


def part(name, priority, weight=1.0):
    return CombinedRanking(name, weight, lambda left: np.asarray(priority, float))


def test_the_scale_of_a_priority_does_not_count():
    first, second = [1, 2, 3, 4], [4e6, 3e-9, 2e-9, 1e-9]
    priority, _ = combine([part("first", first, 0.9), part("second", second, 0.1)], 4)
    np.testing.assert_allclose(priority, [0.1, 0.9 / 3 + 0.2 / 3, 1.8 / 3 + 0.1 / 3, 0.9])


def test_ranks_are_those_among_the_images_that_are_left():
    nan = np.nan
    priority, facts = combine([part("filter", [nan, 1, 1, 1], 0.0), part("score", [9, 1, nan, 3])], 4)
    np.testing.assert_array_equal(priority, [nan, 0, nan, 1])
    assert facts == {"removed_by_filter": 1, "removed_by_score": 1}


def test_a_part_sees_what_earlier_ones_leave():
    seen = []

    def among(left):
        seen.append(left.copy())
        return np.where(left, 1.0, np.nan)

    combine([part("first", [1, np.nan, 1]), CombinedRanking("second", 1.0, among)], 3)
    np.testing.assert_array_equal(seen, [[True, False, True]])


def test_equal_priorities_have_equal_ranks_and_one_image_has_the_best():
    np.testing.assert_array_equal(combine([part("even", [5, 5, 5])], 3)[0], [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(combine([part("one", [np.nan, 5])], 2)[0], [np.nan, 1])


def test_parts_that_leave_nothing_are_refused():
    with pytest.raises(UserError, match=r"^select.parts leave none of the pool's 2 images: b removes the last 1$"):
        combine([part("a", [1, np.nan]), part("b", [np.nan, 1])], 2)
