"""Delivery of a running training's metrics to MLflow, the progress bar, and the watch over what it learns."""

import threading
from collections.abc import Callable, Mapping
from functools import partial

from rich.markup import escape

from rayreid import forms
from rayreid.console import Bar
from rayreid.execution import periodic_metrics
from rayreid.execution.production import StageContext
from rayreid.state_files import read_json
from rayreid.storage.metrics_log import MetricsFeed

METRICS = "metrics.jsonl"
"""File of a training's journal, in its artifact's folder."""
RESOLVED = "resolved.json"
"""File in which worker 0 records how it resolved `auto`, in the same folder."""
_POLL_SECONDS = 2.0

Watch = Callable[[Mapping[str, float]], str | None]
"""A function that gets every logged row, in order, and returns a warning for the user, or None."""


class Delivery:
    """A thread of the driver that delivers the workers' rows to MLflow, the progress bar and the watch function.

    Attributes:
        warnings: What the watch function has returned so far.
    """

    def __init__(self, context: StageContext, bar: Bar, watch: Watch):
        self._feed = MetricsFeed(context.folder / METRICS, context.run.id)
        self._work, self._bar, self._watch = context, bar, watch
        self._last: dict[str, float] = {}
        self.warnings: list[str] = []
        self._tagged = 0
        self._read()  # rows of an earlier process are only for the watch: they say nothing about this process's pace
        self._complained = self._announced = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "Delivery":
        self._work.run.follow(self._feed)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._try(self._pass_on)
        self._try(partial(self._work.run.unfollow, self._feed))

    def _keep(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self._try(self._pass_on)

    def _try(self, step: Callable[[], None]) -> None:
        """Take a step; what prevents it does not stop training, since the rows stay in the journal."""
        try:
            step()
        except Exception as error:
            if not self._complained:
                reason = escape(f"{type(error).__name__}: {error}")
                self._work.screen.say(f"  metrics cannot be logged for now ({reason})")
            self._complained = True

    def _pass_on(self) -> None:
        """Show and deliver the new rows."""
        self._announce()
        self._show()  # first, so that an unreachable tracking server hides nothing from the user
        self._work.run.deliver()
        if len(self.warnings) > self._tagged:
            self._work.run.tags({"warning": "; ".join(self.warnings)})
            self._tagged = len(self.warnings)

    def _announce(self) -> None:
        """Show once how the workers resolved `auto`, which depends on their device."""
        path = self._work.folder / RESOLVED
        if not self._announced and path.exists():
            self._announced = True
            self._work.resolved({}, read_json(path, forms.mapping_of(forms.anything)))

    def _show(self) -> None:
        if self._read() and "loss" in self._last:
            self._bar.to(int(self._last["step"]) + 1, _note(self._last))

    def _read(self) -> list[dict[str, float]]:
        """Return the journal's rows since the last call, after passing them to the watch and keeping their values."""
        written = self._feed.read()
        for warning in filter(None, map(self._watch, written)):
            self.warnings.append(warning)
            self._work.screen.say(f"  [yellow]warning:[/] {escape(warning)}")
        for row in written:
            self._last.update(row)
        return written


def _note(row: Mapping[str, float]) -> str:
    pace = f"{row['images_per_second']:.0f} images/s, {100 * row['wait']:.0f} % waiting"
    return f"epoch {row['epoch']:.1f}  loss {row['loss']:.3f}  {pace}{periodic_metrics.note(row)}"
