"""The journal of a training run: a JSON row a line, appended by workers, read and delivered by the driver."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rayreid.files import write_atomically


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


class Receiver(Protocol):
    """A run that rows are delivered to."""

    id: str

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Take rows with `step`, `time` and metrics, all of them, or raise."""
        ...


class MetricsFeed:
    """Delivers the rows that workers append to `metrics.jsonl`, wherever an earlier process stopped.

    Each metric of each step is delivered once: steps that were run again after a restart are passed over, and several
    rows of one step complete one another.

    A run that is not the one an earlier process delivered to receives all of them. Rows that could not be delivered
    are delivered by the next call.

    Args:
        path: the journal's file (may not exist yet).
        run: the MLflow run that receives them.
    """

    def __init__(self, path: Path, run: Receiver):
        self.run = run
        self._journal = Journal(path)
        self._mark = path.with_name("delivered.json")
        mark = json.loads(self._mark.read_text()) if self._mark.exists() else {}
        self._last: dict[str, int] = mark["steps"] if mark.get("run") == run.id else {}
        self._offset = 0

    def deliver(self) -> list[dict[str, float]]:
        """Forward what is new in the rows written since the last call; returns it."""
        written, offset = self._journal.read(self._offset)
        rows, last = [], dict(self._last)
        for row in written:
            new = [name for name in row if name not in ("step", "time") and row["step"] > last.get(name, -1)]
            if new:
                rows.append({name: row[name] for name in row if name in ("step", "time", *new)})
                last.update(dict.fromkeys(new, row["step"]))
        if rows:
            self.run.history(rows)
            write_atomically(self._mark, json.dumps({"run": self.run.id, "steps": last}))
        self._last = last
        self._offset = offset
        return rows


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
