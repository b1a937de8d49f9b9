"""Restoration of the Ctrl-C handler, which Ray Tune replaces by its own and does not restore."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def handler_kept() -> Iterator[None]:
    """Restore the handler of Ctrl-C (SIGINT) at the end of the `with` block."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
