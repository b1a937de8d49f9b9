"""Embarrassingly parallel forward passes over a store: Ray Data streams row ranges to a pool of actors.

If there are few rows, plain tasks replace the actors, and no execution of Ray Data is needed.

Images are never sent over the network: an actor receives row numbers, reads the bytes through the memory map, decodes
them in threads and returns a few floats per image. The network therefore carries only results, however many actors run
on whichever nodes.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.util.annotations import RayDeprecationWarning

from rayreid.config import Auto
from rayreid.data.store.listed import Images
from rayreid.data.store.store import ImageStore
from rayreid.devices import is_out_of_memory
from rayreid.errors import UserError, one_line
from rayreid.execution.gpus import assigned_device
from rayreid.execution.machine import machine_name
from rayreid.execution.resources import ANYWHERE, Share, scoring_actors
from rayreid.models.embedding import BatchFunction, Pass

_CHUNK = {"cpu": (128, 1024), "cuda": (1024, 4096)}
"""Minimum and maximum number of rows per work item: enough to outweigh the cost of scheduling it, and few enough to
keep all actors busy to the end. Within these bounds every actor gets `_ITEMS` items, so that the driver does not have
to track tens of thousands of items for millions of images."""
_ITEMS = 64

_FEW = 2048
"""Maximum number of rows that plain tasks compute. Work of a second or two does not justify an execution of Ray Data,
which costs 6 to 15 s. The tasks' processes remain for later tasks of the same kind."""

LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
"""The errors that Ray raises when a process or its node is lost."""
_TRIES = 3
"""Number of consecutive executions that may lose a worker without a single result; after that it is no accident."""


class _Actor:
    """An actor that reads, decodes and computes ranges of rows.

    It returns an error that the user can fix as a value, in the column `fault` ("" for no error). Ray Data would wrap
    an exception in one of its own and keep only the text of its traceback.
    """

    def __init__(
        self, store: Path | Images, build: Callable[[torch.device], BatchFunction], batch_size: int | Auto, share: Share
    ):
        torch.set_num_threads(share.cpus)
        self.fault = self.precision = self.machine = ""
        try:
            device = assigned_device(share.gpu)
            self.machine = machine_name(device)
            images = ImageStore(store) if isinstance(store, Path) else store
            head = build(device)
            self.precision = getattr(head, "precision", "")  # of heads that have one; the same on every actor
            self.run = Pass(images, head, batch_size, device, share.cpus)
        except UserError as error:
            self.fault = str(error)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.fault = f"the GPU's memory does not hold the models ({one_line(error, limit=200)}): free some of it"

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, Any]:
        try:
            if self.fault:
                raise UserError(self.fault)
            rows, values, broken = self.run(np.concatenate([np.asarray(part) for part in item["rows"]]))
        except UserError as error:
            rows, values, broken, fault = np.zeros(0, np.int64), np.zeros(0, np.float32), {}, str(error)
        else:
            fault = ""
        return {
            "number": item["number"],
            "row": [rows],
            "value": [values],
            "bad": [np.fromiter(broken, np.int64)],
            "reason": ["\n".join(broken.values())],
            "fault": [fault],
            "precision": [self.precision],
            "machine": [self.machine],
        }


def stream(
    store: Path | Images,
    rows: Sequence[np.ndarray],
    build: Callable[[torch.device], BatchFunction],
    batch_size: int | Auto,
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    """Compute a head over images, on all GPUs or CPUs of the cluster.

    Args:
        store: The image store's folder, or images in their original files; on storage that all nodes see.
        rows: Index rows, in pieces that belong together (for example, one per shard); larger pieces are split.
        build: Function (device) → head; it is pickled and sent to the actors.
        batch_size: Images per forward pass; see `rayreid.models.embedding` for "auto".

    Yields:
        (rows int64 (n,), values (n, …), {row: reason} of the images that could not be decoded), in no particular order.

    Raises:
        UserError: The store or the head raised it on an actor, or `precision: auto` is not the same on all of them.
        RayActorError: Actors are lost repeatedly before they return any result (or another error of `LOST`).
    """
    if not any(map(len, rows)):  # Ray Data cannot build a dataset without items
        return
    share = scoring_actors()
    least, most = _CHUNK["cuda" if share.gpu else "cpu"]
    chunk = min(most, max(least, sum(map(len, rows)) // (_ITEMS * share.workers)))
    pieces = [piece[start : start + chunk] for piece in rows for start in range(0, len(piece), chunk)]
    left = dict(enumerate(pieces))
    execute = _execute_few if sum(map(len, rows)) <= _FEW else _execute
    fruitless = 0
    machines: dict[str, str] = {}
    while left:
        before = len(left)
        try:
            for result in execute(store, left, build, batch_size):
                del left[int(result["number"])]
                unpacked = _unpack(result)
                machines.setdefault(result["precision"], result["machine"])
                _refuse_mixture(machines)
                yield unpacked
        except LOST as error:
            fruitless = fruitless + 1 if len(left) == before else 0
            if fruitless == _TRIES:
                raise
            logging.getLogger("rayreid").warning("a worker was lost, going on without it: %s", one_line(error))


def _refuse_mixture(machines: Mapping[str, str]) -> None:
    """Raise a UserError if actors on different GPUs, or CPUs, compute in different precisions.

    Args:
        machines: {precision: a device that computes in it}.
    """
    if len(machines) > 1:
        pairs = ", ".join(f"{precision} on {machine}" for precision, machine in sorted(machines.items()))
        raise UserError(
            f"the devices of this cluster differ, and so would the precisions of these values ({pairs}): set "
            "score.precision to one of them"
        )


def _execute(
    store: Path | Images,
    left: Mapping[int, np.ndarray],
    build: Callable[[torch.device], BatchFunction],
    batch_size: int | Auto,
) -> Iterator[dict[str, Any]]:
    """Yield the results of one execution of Ray Data over numbered pieces of rows.

    Ray does not restart lost actors here: their items would wait for them, and would wait forever if no other node
    replaces a lost one. Instead the execution ends, and the next one uses the nodes that the cluster then has.
    """
    # Ray Data's own log of an execution is meant for its developers; the stages show their own progress.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False
    share = scoring_actors()
    items = [{"number": number, "rows": piece} for number, piece in left.items()]
    items_in_blocks = ray.data.from_items(items, override_num_blocks=len(items))
    with warnings.catch_warnings():
        # From 2.64 on, Ray Data is to accept these two options in another way, which 2.60 does not offer yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = items_in_blocks.map_batches(
            _Actor,
            batch_size=1,
            compute=ActorPoolStrategy(size=min(share.workers, len(items))),
            num_cpus=share.cpus,
            num_gpus=1 if share.gpu else 0,
            fn_constructor_args=(store, build, batch_size, share),
            max_restarts=0,
            max_task_retries=0,
        )
    yield from dataset.iter_rows()


def _execute_few(
    store: Path | Images,
    left: Mapping[int, np.ndarray],
    build: Callable[[torch.device], BatchFunction],
    batch_size: int | Auto,
) -> Iterator[dict[str, Any]]:
    """Compute numbered pieces of rows in plain tasks, one for each actor that Ray Data would use.

    As in `_execute`, Ray retries nothing: a lost task raises an error, and the next execution computes the pieces that
    are left.
    """
    share = scoring_actors()
    tasks = min(share.workers, len(left))
    gpus = 1 if share.gpu else 0
    task = ray.remote(num_cpus=share.cpus, num_gpus=gpus, max_retries=0, scheduling_strategy=ANYWHERE)(_compute)
    numbers, shared = list(left), ray.put((store, build))
    # Ray's annotations declare the result of a generator task as a single reference, hence `Any`.
    running: list[Any] = [
        task.remote(shared, {number: left[number] for number in numbers[first::tasks]}, batch_size, share)
        for first in range(tasks)
    ]
    try:
        while running:
            results: Any = ray.wait(running)[0][0]
            try:
                result = ray.get(next(results))
            except StopIteration:
                running.remove(results)
            else:
                yield result
    finally:
        for results in running:  # after an error, or if the caller stops early: running tasks would keep their CPUs
            ray.cancel(results, force=True)


def _compute(
    shared: tuple[Path | Images, Callable[[torch.device], BatchFunction]],
    pieces: Mapping[int, np.ndarray],
    batch_size: int | Auto,
    share: Share,
) -> Iterator[dict[str, Any]]:
    """Yield the results of pieces of rows one by one, as an actor would return them."""
    actor = _Actor(*shared, batch_size, share)
    for number, rows in pieces.items():
        columns = actor({"number": np.array([number]), "rows": rows[None]})
        yield {name: column[0] for name, column in columns.items()}


def _unpack(result: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return (rows, values, {row: reason}) from an actor's result of one item.

    Raises:
        UserError: The result reports a fault.
    """
    if result["fault"]:
        raise UserError(result["fault"])
    reasons = result["reason"].split("\n") if len(result["bad"]) else []
    broken = dict(zip(map(int, result["bad"]), reasons, strict=True))
    return np.asarray(result["row"]), np.asarray(result["value"]), broken
