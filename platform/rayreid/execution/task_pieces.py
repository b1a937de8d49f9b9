"""Work that is done in pieces by Ray tasks."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch

from rayreid.execution.resources import ANYWHERE
from rayreid.selection.pieces import Pieces


def pieces_in_tasks() -> Pieces:
    """Return how pieces are done by tasks of one CPU each, on all nodes of the cluster.

    A task that calls it gives its own CPUs away while it waits for the pieces, as Ray does for every task that waits.
    Other work of the cluster may take them, and the pieces then wait for a CPU, too.
    """
    return Pieces(_each, at_once=max(1, int(ray.cluster_resources().get("CPU", 1))))


def _each(function: Callable[[Any], Any], pieces: Sequence[Any]) -> list[Any]:
    if len(pieces) == 1:
        return [function(pieces[0])]  # with all CPUs of this process
    shared = ray.put(function)  # once, as it may hold much
    task = ray.remote(num_cpus=1, scheduling_strategy=ANYWHERE)(_one)
    return ray.get([task.remote(shared, piece) for piece in pieces])


def _one(function: Callable[[Any], Any], piece: Any) -> Any:
    torch.set_num_threads(1)
    return function(piece)
