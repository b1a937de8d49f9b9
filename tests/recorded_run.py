"""In place of an MLflow run: one that keeps what it is given."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rayreid.storage.metrics_log import MetricsFeed


class RecordedRun:
    """A run in memory.

    Attributes:
        id: The run's id.
        away: Whether the store does not answer; histories are refused then.
        rows: The rows of metrics, in the order in which they came.
        figures: The names of the figures, as often as they were logged.
        drawn: The newest figure of each name.
        parameters: The parameters by name.
        values: The metrics that belong to no step.
        tagged: The tags by name.
        datasets: The profile of each dataset.
        owed: The journals that are to be delivered later.
        times: The time that each call to log metrics has given, or None.
        ends: The status and the time of each end.
        followed: The feeds of the journals that are being written.
    """

    def __init__(self, identifier: str = "r"):
        self.id, self.away = identifier, False
        self.rows: list[dict[str, float]] = []
        self.figures: list[str] = []
        self.drawn: dict[str, Any] = {}
        self.parameters: dict[str, Any] = {}
        self.values: dict[str, float] = {}
        self.tagged: dict[str, Any] = {}
        self.datasets: dict[str, Any] = {}
        self.owed: list[Path] = []
        self.times: list[float | None] = []
        self.ends: list[tuple[str, float | None]] = []
        self.followed: list[MetricsFeed] = []
        self.tracker = SimpleNamespace(resume=lambda run: self, finish_late=self.finish_late)

    def child(self, name, tags, note=None):
        return self

    def source(self):
        return {"mlflow.source.name": "rayreid run mine.yaml pool.root=s3://me:secret@store"}

    def history(self, rows):
        if self.away:
            raise ConnectionError("[/no] answer")
        self.rows += rows

    def follow(self, feed):
        self.followed = [feed]

    def deliver(self):
        for feed in self.followed:
            feed.deliver(self.history)

    def unfollow(self, feed):
        if feed.pending and self.away:
            self.owed.append(feed.path)
        self.followed.clear()

    def figure(self, figure, name):
        self.figures.append(name)
        self.drawn[name] = figure

    def params(self, values):
        self.parameters |= values

    def metrics(self, values, step=0, at=None):
        self.values |= values
        self.times.append(at)

    def finish_late(self, run, numbers, at):
        self.metrics(numbers, at=at)
        self.finish(at=at)

    def finish(self, status="FINISHED", at=None):
        self.ends.append((status, at))

    def tags(self, values):
        self.tagged |= values

    def dataset(self, name, fingerprint, source, profile, context):
        self.datasets[name] = profile

    def file(self, path, folder=None):
        assert path.is_file()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None
