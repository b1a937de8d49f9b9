"""MLflow runs that nest and lose nothing while the tracking store is unreachable.

The default store is a SQLite database in the output root and needs no server; `MLFLOW_TRACKING_URI` overrides it. Runs
are addressed by id through the client, never through MLflow's global active run, so several can be open at once and a
later process can continue one.
"""

import io
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rayreid import __version__
from rayreid.files import make_folder
from rayreid.masking import masked, masked_values
from rayreid.storage.lease import LeaseLostError
from rayreid.storage.metrics_log import MetricsFeed
from rayreid.tracking.entries import entry
from rayreid.tracking.outage import Outage, reason
from rayreid.tracking.outbox import Outbox
from rayreid.tracking.revision import DIRTY, SOURCE_TAGS, git_sha, source_tags
from rayreid.tracking.store import open_store, send, tracking_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARENT = "mlflow.parentRunId"
"""The tag that nests a run under another."""
_PARAM_LIMIT = 6000


class Tracker:
    """An MLflow experiment that holds runs; opening it creates the database and the experiment if needed.

    Opening a tracker also delivers what earlier processes on this root could not deliver.

    Args:
        root: The output root; artifacts of the default store go to `<root>/mlartifacts`.
        experiment: Name of the MLflow experiment.
        tell: Called with a line for the user when the store becomes unreachable, or answers again.
        patience: Seconds to wait if the store is unreachable now. Starting a run later waits up to ten minutes.

    Raises:
        UserError: The tracking store cannot be used, or the experiment was deleted there.
    """

    def __init__(
        self,
        root: Path,
        experiment: str = "rayreid",
        tell: Callable[[str], None] = lambda line: None,
        patience: float = 0.0,
    ):
        make_folder(root)
        self.uri = tracking_uri(root)
        self.outboxes = root / "undelivered"
        self.outage = Outage(self.uri, tell)
        self.client, self.experiment_id = open_store(root, self.uri, experiment, self.outage, patience)
        for folder in sorted(self.outboxes.glob("*")):
            if folder.is_dir():
                Run(self, folder.name).deliver()

    def run(self, name: str, tags: Mapping[str, Any] | None = None, parent: "Run | None" = None) -> "Run":
        """Start a run, nested under `parent` if given.

        Raises:
            UserError: The store stayed unreachable.
        """
        # A submitted job has no checkout: there only the version identifies the code.
        commit = git_sha()
        code = {
            "rayreid": __version__,
            "git_sha": commit,
            "mlflow.source.git.commit": commit and commit.removesuffix(DIRTY),
        }
        # A trial runs in a process of Ray's, whose own command says nothing.
        source = parent.source() if parent else source_tags()
        given = {
            key: masked(str(value)) for key, value in {**code, **source, **(tags or {})}.items() if value is not None
        }
        if parent is not None:
            given[PARENT] = parent.id
        created = self.outage.wait(lambda: self.client.create_run(self.experiment_id, run_name=name, tags=given))
        return Run(self, created.info.run_id, source)

    def resume(self, run_id: str) -> "Run | None":
        """Continue a run of an earlier process; return None if the store does not know it.

        Raises:
            UserError: The store stayed unreachable.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.outage.wait(lambda: self.client.set_terminated(run_id, "RUNNING"))
            tags = self.outage.wait(lambda: self.client.get_run(run_id)).data.tags
            for name in {"error", "stopped"} & tags.keys():  # left by the failed attempt that this one replaces
                self.client.delete_tag(run_id, name)
        except MlflowException:
            return None
        return Run(self, run_id)

    def status(self, run_id: str) -> str | None:
        """Return RUNNING, FINISHED, FAILED or KILLED, or None if the store does not know the run.

        Raises:
            UserError: The store stayed unreachable.
        """
        from mlflow.exceptions import MlflowException

        try:
            return str(self.outage.wait(lambda: self.client.get_run(run_id)).info.status)
        except MlflowException:
            return None


class Run:
    """One MLflow run; as a context manager it ends the run as FINISHED, FAILED or KILLED.

    Whatever is logged while the store is unreachable is kept in the output root and delivered in order once the store
    answers again: before the next log call, or when the next process opens a tracker on that root.

    Attributes:
        follows_lease: Whether another process continues the run if this one loses a lease; it is then not ended.
    """

    def __init__(self, tracker: Tracker, run_id: str, source: Mapping[str, str | None] | None = None):
        self.tracker = tracker
        self.client = tracker.client
        self.id = run_id
        self._outbox = Outbox(tracker.outboxes / run_id, entry)
        self._failed = self._given_up = self.follows_lease = False
        self._source = source

    def source(self) -> Mapping[str, str | None]:
        """Return its `SOURCE_TAGS`, from the store where another process began it.

        Raises:
            UserError: The store stayed away.
        """
        if self._source is None:
            tags = self.tracker.outage.wait(lambda: self.client.get_run(self.id)).data.tags
            self._source = {key: tags.get(key) for key in SOURCE_TAGS}
        return self._source

    def child(self, name: str, tags: Mapping[str, Any] | None = None) -> "Run":
        """Start a run nested under this one."""
        return self.tracker.run(name, tags, parent=self)

    def params(self, flat: Mapping[str, Any]) -> None:
        """Log parameters (dotted keys)."""
        self._log("params", {key: str(value)[:_PARAM_LIMIT] for key, value in flat.items()})

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        self._log("tags", {key: str(value) for key, value in tags.items()})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log the metrics of one step."""
        self._log("rows", [{"step": step, "time": time.time(), **{key: float(value) for key, value in values.items()}}])

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

    def finish(self, status: str = "FINISHED") -> None:
        """End the run."""
        self._log("end", {"status": status, "time": time.time()})

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log many steps now; each row holds `step`, `time` (seconds since the epoch) and metrics.

        Logging a row again creates no duplicate, because its time is the same.

        Raises:
            Exception: The store is unreachable.
        """
        from mlflow.entities import Metric

        metrics = [
            Metric(key, float(value), int(row["time"] * 1000), int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key not in ("step", "time")
        ]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.id, metrics=metrics[start : start + 1000])
        self.tracker.outage.ended()

    def owe(self, journal: Path) -> None:
        """Queue a journal whose rows `MetricsFeed` could not deliver, until the store answers again."""
        self._outbox.put({"uri": masked(self.tracker.uri), "kind": "journal", "what": str(journal.absolute())})

    def deliver(self) -> None:
        """Deliver queued entries for as long as the store answers."""
        from mlflow.exceptions import MlflowException

        for waiting in self._outbox.entries():
            if masked(waiting.content["uri"]) != masked(self.tracker.uri):
                return
            try:
                self._send(waiting.content["kind"], waiting.content["what"], waiting.payload)
            except Exception as error:
                if not waiting.path.exists():  # delivered by another process meanwhile
                    continue
                if self.tracker.outage.began(error):
                    return
                if not isinstance(error, MlflowException | OSError):
                    waiting.set_aside(f"MLflow refuses it: {reason(error)}")  # or else it would block every command
                    continue
                self.tracker.outage.tell(
                    f"cannot be delivered to MLflow run {self.id}, and is dropped: {reason(error)}"
                )
            else:
                self.tracker.outage.ended()
            waiting.drop()
        self._outbox.clear_away()

    def _log(self, kind: str, what: Any, payload: bytes | None = None) -> None:
        """Send an entry now, after all queued ones; queue it if the store is unreachable."""
        if kind in ("params", "tags", "dataset"):
            what = masked_values(what)
        name = PurePosixPath(what["name"]).name if payload is not None else ""
        if not self.tracker.outage.lasts():
            self.deliver()
        if not self.tracker.outage.lasts():
            try:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / name
                    if payload is not None:
                        path.write_bytes(payload)
                    self._send(kind, what, path)
                self.tracker.outage.ended()
                return
            except Exception as error:
                if not self.tracker.outage.began(error):
                    raise
        self._outbox.put({"uri": masked(self.tracker.uri), "kind": kind, "what": what}, name, payload)

    def _send(self, kind: str, what: Any, payload: Path | None) -> None:
        match kind:
            case "rows":
                self.history(what)
            case "journal":
                MetricsFeed(Path(what), self).deliver()
            case _:
                send(self.client, self.id, kind, what, payload)

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
        if error is not None and str(error) and not stopped:
            self.fail(str(error))
        failed = self._failed or kind is not None
        self.finish("KILLED" if stopped else "FAILED" if failed else "FINISHED")
