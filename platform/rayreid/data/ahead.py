"""Working ahead: results in order, while the next few are already being computed."""

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
    """Yield every item with the future of its result, in order, while `ahead` items in total are in progress.

    Items are taken one by one, as late as possible, because the values on which they depend may change meanwhile.

    Args:
        pool: Pool in which `work` runs; the caller closes it.
        work: Function to call with an item.
        items: The items, in order.
        ahead: Number of items in progress at a time, including the one that is yielded; at least one.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    source = iter(items)
    while True:
        waiting += [(item, pool.submit(work, item)) for item in islice(source, max(1, ahead) - len(waiting))]
        if not waiting:
            return
        yield waiting.popleft()
