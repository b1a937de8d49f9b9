"""Ctrl-C belongs to the command: Ray Tune puts a handler in its place, and leaves it there afterwards."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def handler_kept() -> Iterator[None]:
    """What Ctrl-C does is afterwards what it was before."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
