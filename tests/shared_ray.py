"""A Ray that the tests of a process share."""

import contextlib
from pathlib import Path

import pytest


class SharedRay:
    """A Ray of this process's own, started when a module first asks for it."""

    def __init__(self, root: Path):
        self._root, self._connection = root, contextlib.ExitStack()

    def start(self) -> None:
        import ray

        from rayreid.execution.connection import connect

        if ray.is_initialized():
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAYREID_ROOT", str(self._root))
            for name in ("RAYREID_DATA", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):  # never another one's cluster
                patch.delenv(name, raising=False)
            self._connection.enter_context(connect())

    def stop(self) -> None:
        self._connection.close()
