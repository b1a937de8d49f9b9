"""When the artifacts of a run begin and end, if as many are made side by side as the machine holds."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A piece of work that occupies one place.

    Attributes:
        seconds: Its duration.
        needs: Names of the tasks that must have ended before it begins; names of no task do not count.
    """

    seconds: float
    needs: frozenset[str]


@dataclass(frozen=True)
class Schedule:
    """When tasks run.

    Attributes:
        begins: Seconds after the start at which each task begins.
        seconds: Time at which the last one ends.
    """

    begins: Mapping[str, float]
    seconds: float


def scheduled(tasks: Mapping[str, Task], places: int) -> Schedule:
    """Return the schedule of tasks that begin as soon as they can, in the given order, `places` at a time.

    Args:
        tasks: The tasks by name; each comes after those that it needs.
        places: Number of tasks that run side by side, at least 1.
    """
    order = {name: number for number, name in enumerate(tasks)}
    left = {name: len(task.needs & tasks.keys()) for name, task in tasks.items()}
    followers: dict[str, list[str]] = {name: [] for name in tasks}
    for name, task in tasks.items():
        for need in task.needs & tasks.keys():
            followers[need].append(name)
    ready = [(order[name], name) for name in tasks if not left[name]]
    begins: dict[str, float] = {}
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < places:
            _, name = heapq.heappop(ready)
            begins[name] = now
            heapq.heappush(running, (now + tasks[name].seconds, name))
        now, ended = heapq.heappop(running)
        for name in followers[ended]:
            left[name] -= 1
            if not left[name]:
                heapq.heappush(ready, (order[name], name))
    return Schedule(begins, now)


def waves(schedule: Schedule) -> Sequence[Sequence[str]]:
    """Return the groups of tasks that begin at the same moment, in order."""
    found: dict[float, list[str]] = {}
    for name, begin in schedule.begins.items():
        found.setdefault(round(begin, 3), []).append(name)
    return [found[begin] for begin in sorted(found)]
