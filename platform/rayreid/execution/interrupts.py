"""Ctrl-C belongs to the command: Ray's Train and Tune put handlers in its place, and leave them there afterwards."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray
import ray.train.torch


class Trainer(ray.train.torch.TorchTrainer):
    """Ray's, but interrupted like any other call: `fit` raises KeyboardInterrupt, and its workers are gone.

    Ray's own handler ends the process with a status that says nothing; once the training is over it swallows Ctrl-C.
    """

    _controller: Any = None

    def fit(self) -> ray.train.Result:
        """Train.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        try:
            return super().fit()
        except KeyboardInterrupt:
            if self._controller is not None:
                ray.kill(self._controller)
            raise

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller


@contextlib.contextmanager
def handler_kept() -> Iterator[None]:
    """What Ctrl-C does is afterwards what it was before."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
