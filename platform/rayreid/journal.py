"""The journal of a training run: one JSON row a line, appended by a worker, read by whoever wants to know."""

import json
import os
import time
from pathlib import Path
from typing import Any


class Journal:
    """Rows in a file that survives its writers: a line torn by a killed worker is passed over.

    Args:
        path: the file; made with the first row.
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Write a row, with the time in seconds since the epoch, through to the disk."""
        with self.path.open("ab") as stream:
            # A line that an earlier writer left unfinished must not swallow this one.
            if stream.tell() and not self._ends_whole():
                stream.write(b"\n")
            stream.write(json.dumps({**row, "time": time.time()}).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def read(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The whole rows from byte `offset` on, and the offset after them."""
        if not self.path.exists():
            return [], offset
        with self.path.open("rb") as stream:
            stream.seek(offset)
            lines = stream.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        return [row for row in map(_parse, whole) if row is not None], offset + sum(map(len, whole))

    def history(self) -> list[dict[str, Any]]:
        """One row per step, in order, of all that was written of it; a value that was written again counts."""
        steps: dict[int, dict[str, Any]] = {}
        for row in self.read()[0]:
            steps.setdefault(row["step"], {}).update(row)
        return [row for _, row in sorted(steps.items())]

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) == b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
