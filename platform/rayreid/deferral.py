"""Deferral of Ctrl-C to the end of a short block that must not be cut off in the middle.

An exception that a signal raises within a `with` statement's entry or exit, or within a statement of a database, leaves
open what the block would have closed, for as long as the exception holds the frames of the call.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

_DEFERRED = (signal.SIGTERM, signal.SIGINT)  # restored in this order: once SIGINT is answered, all are
_current: "_Deferral | None" = None
"""The deferral of the main thread, the only one that a signal's handler interrupts."""


class _Deferral:
    """The handlers that a process has for signals, and the signals that wait for them."""

    def __init__(self) -> None:
        handlers = {number: signal.getsignal(number) for number in _DEFERRED}
        # A signal that the process ignores, or dies of, is not deferred.
        self.handlers: dict[int, Callable[[int, FrameType | None], Any]] = {
            number: handler for number, handler in handlers.items() if callable(handler)
        }
        self._waiting: dict[int, FrameType | None] = {}

    def begin(self) -> None:
        """Let signals wait."""
        for number in self.handlers:
            signal.signal(number, self._defer)

    def end(self) -> None:
        """Restore the handlers, and call those whose signals have come meanwhile."""
        for number, handler in self.handlers.items():
            if signal.getsignal(number) == self._defer:  # else somebody else has installed one meanwhile
                signal.signal(number, handler)
        waiting, self._waiting = self._waiting, {}
        self._answer(list(waiting.items()))

    def _answer(self, waiting: Sequence[tuple[int, FrameType | None]]) -> None:
        """Call the handlers of signals, each even if an earlier one raises."""
        if waiting:
            (number, frame), *others = waiting
            try:
                self.handlers[number](number, frame)
            finally:
                self._answer(others)

    def _defer(self, number: int, frame: FrameType | None) -> None:
        if number in self._waiting:  # who presses Ctrl-C twice does not want to wait
            self.handlers[number](number, frame)
        self._waiting[number] = frame


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait for the end of the block, unless one comes twice."""
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _current = deferral = _Deferral()
    try:
        deferral.begin()
        yield
    finally:
        _current = None
        deferral.end()


@contextlib.contextmanager
def answered_signals() -> Iterator[None]:
    """Let signals interrupt a block within `deferred_signals` that may take long; elsewhere this changes nothing."""
    deferral = _current
    if deferral is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        deferral.end()
        yield
    finally:
        deferral.begin()
