"""Immediate answer to Ctrl-C: Ray may need half a minute to stop its work."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_END = 0  # no signal has this number


@contextlib.contextmanager
def answering_interrupts() -> Iterator[None]:
    """Print one line at the first Ctrl-C, whoever handles the signal: Ray Tune has a silent handler of its own."""
    process = os.getpid()
    heard, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    answering = threading.Thread(target=_answer, args=(heard,), daemon=True)
    answering.start()
    try:
        yield
    finally:
        if os.getpid() == process:  # a copy of it has neither the thread nor a pipe of its own
            signal.set_wakeup_fd(before)
            os.write(wakeup, bytes([_END]))
            answering.join()
            os.close(wakeup)
            os.close(heard)


def _answer(heard: int) -> None:
    while (number := os.read(heard, 1)[0]) != _END:
        if number == signal.SIGINT:
            print("rayreid: stopping; this may take half a minute", file=sys.stderr, flush=True)
            return
