"""Signals that wait for the end of a block, and those that do not."""

import signal
import threading

import pytest

from rayreid.deferral import answered_signals, deferred_signals


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # whatever happened
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_signal_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with deferred_signals():
            press()
            done.append("block")
        done.append("after")
    assert done == ["block"]


def test_a_block_within_a_block_does_not_end_the_wait():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        with deferred_signals():
            press()
        done.append("outer")
    assert done == ["outer"]


def test_a_second_signal_does_not_wait():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        press()
        done.append("first")
        press()
        done.append("second")
    assert done == ["first"]


def test_a_signal_interrupts_what_may_take_long_and_no_more():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with deferred_signals():
            try:
                with answered_signals():
                    press()
                    done.append("long")
            finally:
                press()  # waits again
                done.append("clearing up")
        done.append("after")
    assert done == ["clearing up"]


def test_a_signal_that_waits_interrupts_what_may_take_long_before_it_begins():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        press()
        with answered_signals():
            done.append("long")
    assert done == []


def test_without_a_deferral_nothing_changes():
    with pytest.raises(KeyboardInterrupt), answered_signals():
        press()


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_signals():
        press()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_error_in_the_block_comes_first_and_the_signal_with_it():
    with pytest.raises(KeyboardInterrupt) as raised, deferred_signals():
        press()
        raise ValueError("wrong")
    assert isinstance(raised.value.__context__, ValueError)


def test_other_threads_defer_nothing():
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with deferred_signals(), answered_signals():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    try:
        with pytest.raises(KeyboardInterrupt):
            press()
    finally:
        leave.set()
        thread.join()


def test_of_two_signals_that_wait_both_are_answered():
    answered = []
    before = signal.signal(signal.SIGTERM, lambda *_: answered.append("term"))
    try:
        with pytest.raises(KeyboardInterrupt), deferred_signals():
            press()
            signal.raise_signal(signal.SIGTERM)
        assert answered == ["term"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_others_install_within_the_block_stays():
    answered = []
    with deferred_signals():
        signal.signal(signal.SIGINT, lambda *_: answered.append("theirs"))
    press()
    assert answered == ["theirs"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
