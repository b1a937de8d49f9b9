"""Time on a device, and what its kernels do with it."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


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


def kernels(work: Callable[[], object], device: str, table: Path | None) -> dict[str, float]:
    """The share of the time in which no kernel runs, and the kernels per call; their table goes to a file."""
    if device == "cpu":
        return {}
    calls = 3
    work()
    wait(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            work()
        wait(device)
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        averages = profiler.key_averages()
        table.write_text(averages.table(sort_by="self_cuda_time_total", row_limit=70, max_name_column_width=110))
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith("## ")
    )
    if not spans:
        return {}
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return {"idle": 1 - busy / (end - spans[0][0]), "kernels": len(spans) / calls}
