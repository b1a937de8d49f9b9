"""Two worker processes, kept for the whole session, in which tests run functions as the ranks of a gloo group."""

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2
_TIMEOUT = timedelta(seconds=120)  # a worker that waits for one that has failed or hangs gives up after this time


class GlooWorkers:
    """The processes; they are started at the first call."""

    def __init__(self) -> None:
        self._ranks: list[ProcessPoolExecutor] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return what `function(rank, *arguments)` returns on each rank.

        Every call has a process group of its own. The function must be importable, and leave its process as it found
        it: later calls run there, too.
        """
        if not self._ranks:
            # Both are forked from a process that has imported what takes seconds, and has no threads.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["torch", "rayreid.models.backbones"])
            self._ranks = [ProcessPoolExecutor(1, context) for _ in range(WORLD)]
        try:
            with tempfile.TemporaryDirectory() as folder:
                calls = [
                    executor.submit(_run, rank, folder, function, arguments)
                    for rank, executor in enumerate(self._ranks)
                ]
                return [pickle.loads(call.result()) for call in calls]
        except BaseException:
            self.close()  # the other worker may still wait for this one
            raise

    def close(self) -> None:
        """End the processes; the next call starts new ones."""
        for executor in self._ranks:
            executor.shutdown(wait=False, cancel_futures=True)
        self._ranks = []


def _run(rank: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """Call the function inside a new process group and return its pickled result.

    Pickled here, tensors travel by value. The executor itself would send them as shared memory.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD, timeout=_TIMEOUT)
    try:
        return pickle.dumps(function(rank, *arguments))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
