"""Paired timing: what is measured and its baseline in turns, so that whatever else the machine does slows both."""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from time import perf_counter
from typing import Any


@dataclass(frozen=True)
class Paired:
    """Two times measured in turns, in seconds, one of each per repeat.

    Attributes:
        measured: Of what is measured.
        baseline: Of its baseline.
    """

    measured: Sequence[float]
    baseline: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Measured ÷ baseline, of each repeat: 1 is as quick as the baseline, 2 takes twice its time."""
        return [a / b for a, b in zip(self.measured, self.baseline, strict=True)]

    def row(self, name: str, unit: str, show: Callable[[float], float]) -> tuple[str, ...]:
        """A line of the table: the medians as `show` turns seconds into `unit`, the median ratio and its bounds."""
        times = (number(show(median(seconds))) for seconds in (self.measured, self.baseline))
        bounds = f"({min(self.ratios):.2f} to {max(self.ratios):.2f})"
        return (name, unit, *times, f"{median(self.ratios):.2f}", bounds)


def paired(
    measured: Callable[[], Any],
    baseline: Callable[[], Any],
    repeats: int,
    clock: Callable[[], float] = perf_counter,
) -> Paired:
    """Time two functions `repeats` times in turns, each time the other one first, after one untimed call of both.

    Args:
        measured: What is measured.
        baseline: Its baseline.
        repeats: How often each is timed.
        clock: Returns seconds; `time.thread_time` leaves out the time in which other processes had the CPU.
    """
    both = (measured, baseline)
    seconds: tuple[list[float], list[float]] = ([], [])
    for function in both:
        function()
    for repeat in range(repeats):
        for which in in_turns(repeat):
            began = clock()
            both[which]()
            seconds[which].append(clock() - began)
    return Paired(*seconds)


def in_turns(repeat: int) -> tuple[int, int]:
    """Which of two goes first in a repeat: neither always profits from what the other leaves behind."""
    return (0, 1) if repeat % 2 == 0 else (1, 0)


def number(value: float) -> str:
    """Four digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def show_table(title: str, rows: Sequence[tuple[str, ...]], libraries: Sequence[str]) -> None:
    """Print what `Paired.row` gave, under the machine and the versions it was measured with."""
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    print(f"{title}\n{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {versions}\n")
    lines = [("", "unit", "measured", "baseline", "ratio", "(bounds)"), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        print("  ".join([*left, *right]).rstrip())
    sys.stdout.flush()
