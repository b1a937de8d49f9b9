import signal
import threading

import pytest

from rayreid.execution.interrupts import handler_kept


def another(number, frame):
    pass


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_a_handler_that_was_put_in_the_place_of_ours_is_taken_out_again(error):
    ours = signal.getsignal(signal.SIGINT)
    try:
        with handler_kept():
            signal.signal(signal.SIGINT, another)
            if error is not None:
                raise error
    except RuntimeError:
        pass
    assert signal.getsignal(signal.SIGINT) is ours


def test_a_thread_that_is_not_the_main_one_has_no_handler_to_keep():
    failures = []

    def work():
        try:
            with handler_kept():
                pass
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
