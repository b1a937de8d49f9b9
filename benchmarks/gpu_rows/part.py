"""The parts of a row."""

import argparse
from collections.abc import Callable, Iterator

Values = dict[str, float | str]
"""Figures by name. `same` is "yes" if the results agree with the CPU's, and "NO" otherwise."""

Part = tuple[str, Callable[[], Values]]
"""A name, and a function that measures. The first part of a row is what the row is about; if a later one fails, the
others are measured all the same."""

Row = Callable[[argparse.Namespace], Iterator[Part]]
"""A row prepares what its parts share, and yields them one by one."""


def agreement(same: bool) -> Values:
    return {"same": "yes" if same else "NO"}
