import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rayreid.data.ahead import in_order


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_results_come_in_order(ahead):
    with ThreadPoolExecutor(3) as pool:
        found = [(item, future.result()) for item, future in in_order(pool, lambda n: n * n, range(9), ahead)]
    assert found == [(n, n * n) for n in range(9)]


def test_no_more_items_are_taken_than_may_be_under_way():
    taken = []

    def items():
        for number in range(6):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        for done, (item, _) in enumerate(in_order(pool, str, items(), ahead=3)):
            assert item == done
            assert len(taken) == min(done + 3, 6)


def test_the_next_is_under_way_while_one_is_used():
    begun = [threading.Event() for _ in range(3)]

    def work(number):
        begun[number].set()

    with ThreadPoolExecutor(1) as pool:
        pieces = in_order(pool, work, range(3), ahead=2)
        next(pieces)
        assert begun[1].wait(timeout=10)
        assert not begun[2].wait(timeout=0.05)


def test_an_error_is_raised_where_the_result_is_asked_for():
    def fail(number):
        raise ValueError(number)

    with ThreadPoolExecutor(1) as pool:
        (_, future), *_ = in_order(pool, fail, [7], ahead=1)
        with pytest.raises(ValueError, match="7"):
            future.result()
