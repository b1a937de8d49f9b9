"""Time, memory and kernels of a device."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_rows.part import Values

PROFILED = 8
"""Number of calls of which a profile is made."""


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def seconds_each(work: Callable[[], object], device: str, repeats: int, warm: int = 3) -> float:
    """Mean seconds of one call among `repeats` in a row, of which none is waited for."""
    for _ in range(warm):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - began) / repeats


def forget_memory(device: str) -> None:
    """Let `memory` start from what is allocated now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()


def memory(device: str) -> Values:
    """The most memory that tensors took at once since `forget_memory`."""
    return {} if device == "cpu" else {"memory_GiB": torch.cuda.max_memory_allocated() / 2**30}


class Trace:
    """A profile that can start and stop while work goes on; it ends with its context at the latest.

    On a GPU only the device is recorded, since a record of every operation on the host would hold up the host.
    """

    def __init__(self, device: str):
        self._profiler = profile(activities=[ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA])
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._profiler.start()
        self._running = True

    def stop(self) -> None:
        """Stop after the work that was queued so far."""
        if self._running:
            self._running = False
            self._profiler.stop()

    def values(self, calls: int, table: Path | None) -> Values:
        """The idle share, and the kernels of one of `calls` calls, whose table goes to a file; none on a CPU."""
        if table is not None:
            table.parent.mkdir(parents=True, exist_ok=True)
            averages = self._profiler.key_averages()
            table.write_text(averages.table(sort_by="self_cuda_time_total", row_limit=70, max_name_column_width=110))
        spans = [
            (event.time_range.start, event.time_range.end)
            for event in self._profiler.events() or []
            if event.device_type == torch.autograd.DeviceType.CUDA
            # Names of code, such as an optimizer's step, span its kernels and the gaps between them.
            and not (event.is_user_annotation or event.name.startswith("## "))
        ]
        return {"idle": idle_share(spans), "kernels": len(spans) / calls} if spans else {"idle": "not measured"}


def idle_share(spans: Sequence[tuple[float, float]]) -> float:
    """Share of the time in which no kernel runs and nothing is copied, in the middle half of a profile.

    Args:
        spans: (start, end) of kernels and copies. Where the profile starts, the device may have waited for the
            profiler, and at its end for the host.
    """
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    margin = (last - first) / 4
    reached, end = first + margin, last - margin
    busy = 0.0
    for start, stop in sorted(spans):
        start, stop = max(start, reached), min(stop, end)
        if start < stop:
            busy += stop - start
            reached = stop
    return 1 - busy / (last - first - 2 * margin)


def kernels(work: Callable[[], object], device: str, table: Path | None) -> Values:
    """The idle share and the number of kernels of calls in a row."""
    calls = 1 if device == "cpu" else PROFILED
    work()
    with Trace(device) as trace:
        trace.start()
        for _ in range(calls):
            work()
        trace.stop()
    return trace.values(calls, table)
