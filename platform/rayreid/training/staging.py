"""Preparation of the next batch on the training device while the current step runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Lane(Protocol):
    """A queue for work on the device that runs in parallel with the caller's work."""

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Queue `work`, and return a function that returns its result to the caller, whose later work waits for it."""


class AtOnce:
    """The lane of a device without queues, which does work as soon as it is started."""

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Do `work`, and return a function that returns its result."""
        result = work()
        return lambda: result


class SideStream:
    """The lane of a GPU: a separate CUDA stream."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Queue the kernels of `work` on the side stream, and return a function that returns its result."""
        with torch.cuda.stream(self.stream):
            result = work()
            done = self.stream.record_event()

        def take() -> T:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(done)
            # The tensors' memory belongs to the side stream's pool, and must not be reused before the step has read it.
            for tensor in _tensors(result):
                tensor.record_stream(current)
            return result

        return take


def lane_for(device: torch.device) -> Lane:
    """Return the lane that suits a device."""
    return SideStream(device) if device.type == "cuda" else AtOnce()


def one_ahead(pieces: Iterable[T], prepare: Callable[[T], object], lane: Lane) -> Iterator[tuple[T, object]]:
    """Yield each piece with the result of `prepare`, after the next piece has been started.

    Args:
        pieces: The pieces; one more is requested than was yielded.
        prepare: Function that is called on this thread, in the order of the pieces.
        lane: Lane on which its work runs.
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
