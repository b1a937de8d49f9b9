"""Console output while stages run: a live progress bar on a terminal, or an occasional line in a log."""

import codecs
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from rayreid.masking import masked, masked_values

_LINE_SECONDS = 15.0
_LOG_WIDTH = 500
"""Columns of a table where the output is no terminal."""

_PLAIN = {
    "▸": ">",
    "✓": "+",
    "✗": "x",
    "×": "x",
    "·": "*",
    "→": "->",
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "≥": ">=",
}
"""What stands for a symbol where the terminal's or log's encoding does not have it; anything else becomes `?`."""
_ERRORS = "rayreid.plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(symbol, "?") for symbol in error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _plain)


def any_encoding(stream: TextIO) -> TextIO:
    """Let a stream replace characters that its encoding does not have, instead of raising an error; return it."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_ERRORS)
    return stream


def clock(seconds: float) -> str:
    """Format seconds as `1:23:45` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def json_of(values: Any) -> str:
    """Return plain values as JSON to print, with credentials masked; keys stay as they are."""
    return json.dumps(masked_values(values), indent=1)


class MaskingConsole(Console):
    """A console that masks credentials in every text before it is laid out, also in the cells of tables and trees."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text for the console; a line break within a credential would hide it from a later mask."""
        return super().render_str(masked(text), **options)


class Bar:
    """Progress bar of one long step."""

    def __init__(self, title: str, total: int | None, console: Console, live: Progress | None, task: TaskID | None):
        self.title, self.total = title, total
        self._console, self._live, self._task = console, live, task
        self._began: float | None = None
        self._first = 0
        self._spoke = time.monotonic()

    def of(self, total: int) -> None:
        """Set the total if it was not known at the start."""
        self.total = total
        if self._live is not None and self._task is not None:
            self._live.update(self._task, total=total)

    def to(self, done: int, note: str = "") -> None:
        """Show that `done` parts are finished; `note` adds figures such as the loss."""
        now = time.monotonic()
        if self._began is None:
            # The first report starts the clock: time before it (start-up, a resumed part) says nothing about the pace.
            self._began, self._first = now, done
        left = self._left(done, now)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, note=escape(note), left=left)
        elif done != self.total and now - self._spoke >= _LINE_SECONDS and done > self._first:
            total = "" if self.total is None else f"/{self.total}"
            self._console.print(f"    {self.title} {done}{total}  {left}{note}".rstrip(), highlight=False)
            self._spoke = now

    def _left(self, done: int, now: float) -> str:
        """Format the remaining time at the pace since the first report; rich's estimate only looks back 30 s."""
        if self.total is None or self._began is None or done <= self._first:
            return ""
        return f"{clock((now - self._began) / (done - self._first) * (self.total - done))} left  "


class Screen:
    """Prints lines, progress bars and tables; bars are live only on a terminal."""

    def __init__(self, console: Console | None = None):
        self.console = console or MaskingConsole(file=any_encoding(sys.stdout), soft_wrap=True, highlight=False)

    def __reduce__(self) -> tuple[type["Screen"], tuple[()]]:
        """Unpickle as a new screen, because another process has its own output (Tune pickles its callbacks)."""
        return Screen, ()

    def say(self, text: str) -> None:
        """Print one line, credentials masked."""
        self.console.print(masked(text))

    def wide(self, drawn: RenderableType) -> None:
        """Print a table or tree: wrapped to the width of a terminal, or as wide as it is in a log or file."""
        before = self.console.width
        if not self.console.is_terminal:
            self.console.width = _LOG_WIDTH
        self.console.print(drawn, soft_wrap=False)
        self.console.width = before

    def facts(self, values: Mapping[str, object], width: int) -> None:
        """Print a line for each name and value, the values aligned after `width` columns; empty ones are left out."""
        for name, value in values.items():
            if value:
                self.say(f"[bold]{name:<{width}}[/]{escape(str(value))}")

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Bar]:
        """Show a bar for one long step of `total` parts (None: not known yet, see `Bar.of`)."""
        if not self.console.is_terminal:
            yield Bar(title, total, self.console, None, None)
            return
        columns = (
            TextColumn("    {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as live:
            yield Bar(title, total, self.console, live, live.add_task(title, total=total, note="", left=""))
