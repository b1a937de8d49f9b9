"""Working ahead: results in order, while a few of those to come are already being made."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """Yield every item with the future of its result, in order, while `ahead` items in all are under way.

    Items are taken one by one, as late as that allows: what they depend on may change meanwhile.

    Args:
        pool: Where `work` runs; it belongs to the caller, who closes it.
        work: What is done with an item.
        items: The items, in order.
        ahead: Items under way at a time, the one that is yielded included; at least one.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    source = iter(items)
    while True:
        waiting += [(item, pool.submit(work, item)) for item in islice(source, max(1, ahead) - len(waiting))]
        if not waiting:
            return
        yield waiting.popleft()
