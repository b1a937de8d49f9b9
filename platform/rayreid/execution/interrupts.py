"""Ctrl-C belongs to the command: Ray's Train and Tune put handlers in its place, and leave them there afterwards."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import ray
import ray.train.torch

from rayreid.execution.ray_internals import KnownController


class Trainer(KnownController, ray.train.torch.TorchTrainer):
    """Ray's trainer, interrupted like any other call: `fit` raises KeyboardInterrupt, and its workers are gone."""

    def fit(self) -> ray.train.Result:
        """Train.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        try:
            return super().fit()
        except KeyboardInterrupt:
            if self.controller is not None:
                ray.kill(self.controller)
            raise


@contextlib.contextmanager
def handler_kept() -> Iterator[None]:
    """What Ctrl-C does is afterwards what it was before."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
