"""MLflow runs that nest and lose nothing while the tracking store is unreachable.

Whatever is logged goes to the disk first, and from there to the store: see `rayreid.tracking.deliverer`.
"""

import io
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rayreid.errors import UserError
from rayreid.masking import masked, masked_values
from rayreid.storage.lease import LeaseLostError
from rayreid.storage.metrics_log import MetricsFeed
from rayreid.tracking.outage import reason
from rayreid.tracking.revision import source_in
from rayreid.tracking.run_note import RunNote

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rayreid.tracking.tracker import Tracker

PARENT = "mlflow.parentRunId"
"""The tag that nests a run under another."""
_PARAM_LIMIT = 6000


class Run:
    """One MLflow run; as a context manager it ends the run as FINISHED, FAILED or KILLED.

    When a log call returns, the store holds what was logged. While the store is unreachable, or another process sends
    entries of the same run, it is kept in the output root and delivered in order afterwards: with the next log call, or
    when the next process opens a tracker on that root. A log call raises what MLflow says if it refuses the entry.

    Attributes:
        follows_lease: Whether another process continues the run if this one loses a lease; it is then not ended.
    """

    def __init__(self, tracker: "Tracker", run_id: str, source: Mapping[str, str | None] | None = None):
        self.tracker = tracker
        self.client = tracker.client
        self.id = run_id
        self._failed = self._given_up = self.follows_lease = False
        self._source = source

    def source(self) -> Mapping[str, str | None]:
        """Return its `SOURCE_TAGS`, from the store where another process began it.

        Raises:
            UserError: The store stayed away.
        """
        if self._source is None:
            self._source = source_in(self.tracker.outage.wait(lambda: self.client.get_run(self.id)).data.tags)
        return self._source

    def child(self, name: str, tags: Mapping[str, Any] | None = None, note: RunNote | None = None) -> "Run":
        """Start a run nested under this one; see `Tracker.run`."""
        return self.tracker.run(name, tags, self, note)

    def params(self, flat: Mapping[str, Any]) -> None:
        """Log parameters (dotted keys)."""
        self._log("params", {key: str(value)[:_PARAM_LIMIT] for key, value in flat.items()})

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        self._log("tags", {key: str(value) for key, value in tags.items()})

    def metrics(self, values: Mapping[str, float], step: int = 0, at: float | None = None) -> None:
        """Log the metrics of one step.

        Args:
            values: Metrics by name.
            step: Number of the step.
            at: Their time, seconds since 1970 (default: now). What is logged again with the same time is one point.
        """
        row = {"step": step, "time": time.time() if at is None else at}
        self._log("rows", [{**row, **{key: float(value) for key, value in values.items()}}])

    def dataset(self, name: str, fingerprint: str, source: str, profile: Mapping[str, Any], context: str) -> None:
        """Log an input dataset with its fingerprint."""
        described = {"name": name, "digest": fingerprint[:36], "source": source, "profile": dict(profile)}
        self._log("dataset", {**described, "context": context})

    def figure(self, figure: "Figure", name: str) -> None:
        """Log a matplotlib figure, e.g. as `figures/cmc.png`."""
        drawn = io.BytesIO()
        figure.savefig(drawn, format=PurePosixPath(name).suffix[1:])
        self._log("artifact", {"name": name}, drawn.getvalue())

    def file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as an artifact; it must stay where it is."""
        self._log("file", {"path": str(path.absolute()), "folder": folder})

    def text(self, text: str, name: str) -> None:
        """Log a text as an artifact."""
        self._log("artifact", {"name": name}, masked(text).encode())

    def finish(self, status: str = "FINISHED", at: float | None = None) -> None:
        """End the run, now or at a time (seconds since 1970)."""
        self._log("end", {"status": status, "time": time.time() if at is None else at})

    def begin_again(self) -> None:
        """Set a run that an earlier process has ended, or left, to RUNNING, without the reasons why that one failed."""
        self._log("resume", {})

    def follow(self, feed: MetricsFeed) -> None:
        """Deliver from now on, with each delivery of this run, the rows that a feed reads.

        If this process dies, a later one delivers the rest of the journal.
        """
        self.tracker.deliverer.follow(self.id, feed)

    def unfollow(self, feed: MetricsFeed) -> None:
        """Deliver what is left of a journal that is complete."""
        self.tracker.deliverer.unfollow(self.client, self.id, feed)

    def deliver(self) -> None:
        """Deliver what waits for as long as the store answers."""
        self.tracker.deliverer.deliver(self.client, self.id)

    def _log(self, kind: str, what: Any, payload: bytes | None = None) -> None:
        if kind in ("params", "tags", "dataset"):
            what = masked_values(what)
        name = PurePosixPath(what["name"]).name if payload is not None else ""
        self.tracker.deliverer.log(self.client, self.id, kind, what, name, payload)

    def fail(self, why: str) -> None:
        """Record why there is no result; the run will end as FAILED."""
        self.tags({"error": why[:500]})
        self._failed = True

    def give_up(self, why: str) -> None:
        """Record why there is no result although nothing failed; the run ends as FINISHED, whatever is raised."""
        self.tags({"stopped": why[:500]})
        self._given_up = True

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LeaseLostError) and self.follows_lease:
            return  # the process that has taken over continues this run, or has ended it
        stopped = kind in (KeyboardInterrupt, SystemExit)  # `ray job stop` raises SystemExit
        if self._given_up:
            self.finish()
            return
        try:
            if error is not None and str(error) and not stopped:
                self.fail(str(error))
            failed = self._failed or kind is not None
            self.finish("KILLED" if stopped else "FAILED" if failed else "FINISHED")
        except (OSError, UserError) as refused:  # as by a full disk: what came first is what the user must hear
            if error is None:
                raise
            self.tracker.outage.tell(f"the end of MLflow run {self.id} is not recorded ({reason(refused)})")
