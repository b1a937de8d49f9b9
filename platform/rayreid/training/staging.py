"""Preparing the next batch on the training device beside the step that runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Lane(Protocol):
    """Where work on the device is queued beside that of the caller."""

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Queue `work`; calling what is returned hands its result to the caller, whose later work waits for it."""


class AtOnce:
    """The lane of a device that has no queues: work is done when it is started."""

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Do `work`; return its result when asked."""
        result = work()
        return lambda: result


class SideStream:
    """A CUDA stream of its own."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Queue the kernels of `work` on the side stream."""
        with torch.cuda.stream(self.stream):
            result = work()
            done = self.stream.record_event()

        def take() -> T:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(done)
            # Their memory belongs to the side stream's pool: it is not given away before the step has read it.
            for tensor in _tensors(result):
                tensor.record_stream(current)
            return result

        return take


def lane_for(device: torch.device) -> Lane:
    """The lane that suits a device."""
    return SideStream(device) if device.type == "cuda" else AtOnce()


def one_ahead(pieces: Iterable[T], prepare: Callable[[T], object], lane: Lane) -> Iterator[tuple[T, object]]:
    """Yield each piece with what `prepare` makes of it; the next one has been started by then.

    Args:
        pieces: Asked for one more than was yielded.
        prepare: Called on this thread, in the order of the pieces.
        lane: Where what it does runs.
    """
    ready: tuple[T, Callable[[], object]] | None = None
    for piece in pieces:
        started = lane.start(partial(prepare, piece))
        if ready is not None:
            yield ready[0], ready[1]()
        ready = piece, started
    if ready is not None:
        yield ready[0], ready[1]()


def _tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Sequence) and not isinstance(result, str):
        for part in result:
            yield from _tensors(part)
