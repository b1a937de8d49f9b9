"""Work that is done in pieces, in this process or in others."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pieces:
    """How the pieces of some work are done.

    Attributes:
        each: Function (function, pieces) → function(piece) of each, in their order, like `map`; function and pieces can
            be pickled.
        at_once: How many pieces are done at once.
    """

    each: Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]] = map
    at_once: int = 1


HERE = Pieces()
"""One piece after the other, in this process."""
