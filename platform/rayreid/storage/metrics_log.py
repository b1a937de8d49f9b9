"""The journal of a training: one JSON row per line, appended by workers, read and delivered by the driver."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rayreid import forms
from rayreid.files import append_lines, write_atomically
from rayreid.state_files import DamagedFileError, if_whole, read_json

MARK = "delivered.json"
"""File, beside a journal, that says how far it is delivered."""
_WRITER = "writer"
_ROW = forms.record({"step": forms.whole, "time": forms.finite}, {_WRITER: forms.count}, forms.number)
MARK_FORM = forms.record({"run": forms.text, "steps": forms.mapping_of(forms.whole)})
_NO_METRICS = ("step", "time")
_BEFORE = -2  # below every step: a probe before the first step is logged at step -1


class Newest:
    """The newest writer of a journal so far."""

    def __init__(self) -> None:
        self._number = 0

    def counts(self, writer: int) -> bool:
        """Return whether the next row, which a writer wrote, counts after all rows before it."""
        self._number = max(self._number, writer)
        return writer == self._number


class Journal:
    """Rows in a file that outlives its writers; a line truncated by a killed worker, or damaged, is skipped.

    Rows name their writer. Once a writer has written, rows that an earlier one still appends are skipped: that one has
    lost its lease.

    Args:
        path: The file; created with the first row.
        writer: Number of the writer, higher than those of earlier ones; 0, as of files without numbers, to read only.
    """

    def __init__(self, path: Path, writer: int = 0):
        self.path = path
        self._writer = writer
        self._newest = Newest()

    def append(self, row: dict[str, Any]) -> None:
        """Append a row with the time (seconds since the epoch), and flush it to disk."""
        content = {**row, "time": time.time(), **({_WRITER: self._writer} if self._writer else {})}
        append_lines(self.path, json.dumps(content).encode() + b"\n")

    def read(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the complete rows from byte `offset` on, and the offset after them.

        An offset other than 0 must be what the last call returned.
        """
        if not offset:
            self._newest = Newest()
        if not self.path.exists():
            return [], offset
        with self.path.open("rb") as stream:
            stream.seek(offset)
            lines = stream.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        rows = [row for row in map(_parse, whole) if row is not None and self._newest.counts(row.pop(_WRITER, 0))]
        return rows, offset + sum(map(len, whole))

    def history(self) -> list[dict[str, Any]]:
        """Return one row per step, in order, merged from all rows of that step; the last value written counts."""
        steps: dict[int, dict[str, Any]] = {}
        for row in self.read()[0]:
            steps.setdefault(row["step"], {}).update(row)
        return [row for _, row in sorted(steps.items())]

    def newest(self, name: str) -> dict[str, Any]:
        """Return the newest row of the history that holds a metric.

        Raises:
            DamagedFileError: There is none.
        """
        rows = [row for row in self.history() if name in row]
        if not rows:
            raise DamagedFileError(
                f"{self.path}: no row with {name} can be read; remove {self.path.parent} and run the same command again"
            )
        return rows[-1]


class MetricsFeed:
    """The one reader of a journal on the driver, and the rows in it that are still to be delivered to a run.

    Each metric of each step is delivered once: steps that run again after a restart are skipped, and several rows of
    one step complete one another. Delivery continues where an earlier process stopped. A run other than the one that
    process delivered to receives all rows.

    One thread may read while another delivers.

    Args:
        path: The journal's file; it may not exist yet.
        run: Id of the run that receives the rows.
    """

    def __init__(self, path: Path, run: str):
        self.path = path
        self._run = run
        self._journal, self._offset = Journal(path), 0
        self._mark = path.with_name(MARK)
        mark = if_whole(self._mark, partial(read_json, self._mark, MARK_FORM), "all rows are delivered again")
        self._delivered: dict[str, int] = mark["steps"] if mark is not None and mark["run"] == run else {}
        self._taken = dict(self._delivered)
        self._pending: list[dict[str, float]] = []

    @property
    def pending(self) -> bool:
        """Whether rows that were read are still to be delivered."""
        return bool(self._pending)

    def read(self) -> list[dict[str, float]]:
        """Return all rows written since the last call; what is new in them is pending from now on."""
        written, self._offset = self._journal.read(self._offset)
        for row in written:
            new = [name for name in row if name not in _NO_METRICS and row["step"] > self._taken.get(name, _BEFORE)]
            if new:
                self._pending.append({name: row[name] for name in row if name in (*_NO_METRICS, *new)})
                self._taken.update(dict.fromkeys(new, row["step"]))
        return written

    def deliver(self, send: Callable[[Sequence[Mapping[str, float]]], None]) -> list[dict[str, float]]:
        """Deliver the pending rows, and return them.

        If the process dies before it has noted how far they are delivered, the next one delivers the same rows again.

        Args:
            send: Accepts all rows (`step`, `time` and metrics), or raises: then they stay pending.
        """
        rows = list(self._pending)
        if rows:
            send(rows)
            steps = {name: int(row["step"]) for row in rows for name in row if name not in _NO_METRICS}
            self._delivered |= steps
            write_atomically(self._mark, json.dumps({"run": self._run, "steps": self._delivered}))
            del self._pending[: len(rows)]
        return rows


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        return forms.parse(line, _ROW)
    except ValueError:
        return None
