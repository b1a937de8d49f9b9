"""MLflow runs that nest and lose nothing while the tracking store is unreachable.

Whatever is logged goes to the disk first, and from there to the store: see `rayreid.tracking.deliverer`.

The default store is a SQLite database in the output root and needs no server; `MLFLOW_TRACKING_URI` overrides it. Runs
are addressed by id through the client, never through MLflow's global active run, so several can be open at once and a
later process can continue one.
"""

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rayreid import __version__
from rayreid.errors import UserError
from rayreid.files import make_folder
from rayreid.masking import masked, masked_values
from rayreid.storage.lease import LeaseLostError
from rayreid.storage.metrics_log import MetricsFeed
from rayreid.tracking.deliverer import Deliverer
from rayreid.tracking.outage import Outage, reason
from rayreid.tracking.revision import DIRTY, SOURCE_TAGS, git_sha, source_tags
from rayreid.tracking.run_note import RunNote
from rayreid.tracking.store import open_store, tracking_uri, without_retries

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run as MlflowRun

PARENT = "mlflow.parentRunId"
"""The tag that nests a run under another."""
_MARK = "rayreid.mark"
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
        self.deliverer = Deliverer(self.outboxes, self.uri, self.outage)
        self.deliverer.deliver_all(self.client)

    def run(
        self,
        name: str,
        tags: Mapping[str, Any] | None = None,
        parent: "Run | None" = None,
        note: RunNote | None = None,
    ) -> "Run":
        """Start a run.

        Args:
            name: Its name.
            tags: Its tags.
            parent: The run in which it is nested.
            note: Gets a mark, so that the run is found again if this process is killed before it can note the run's id.

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
        if note is None:
            created = self.outage.wait(lambda: self.client.create_run(self.experiment_id, run_name=name, tags=given))
            return Run(self, created.info.run_id, source)
        given[_MARK], tried = note.mark()

        def create() -> "Run":
            nonlocal tried
            left = self._marked(given[_MARK]) if tried else None
            if left is not None:
                return left
            tried = True  # from now on a run may be there although no answer has come
            with without_retries():
                created = self.client.create_run(self.experiment_id, run_name=name, tags=given)
            return Run(self, created.info.run_id, source)

        return self.outage.wait(create)

    def _marked(self, mark: str) -> "Run | None":
        """Return the run that was created with a mark, RUNNING again; None if there is none.

        Of several, which a server has created that was slow to answer, all but the first are ended.
        """
        experiments = [one.experiment_id for one in self.client.search_experiments()]  # artifacts are shared by them
        found = self.client.search_runs(experiments, f"tags.`{_MARK}` = '{mark}'", order_by=["start_time ASC"])
        for double in found[1:]:
            Run(self, double.info.run_id).finish("KILLED")
        if not found:
            return None
        left = Run(self, found[0].info.run_id, _source_of(found[0]))
        left.begin_again()
        return left

    def resume(self, run_id: str) -> "Run | None":
        """Continue a run of an earlier process; return None if the store does not know it.

        Raises:
            UserError: The store stayed unreachable.
        """
        from mlflow.exceptions import MlflowException

        try:
            found = self.outage.wait(lambda: self.client.get_run(run_id))
            run = Run(self, run_id, _source_of(found))
            run.begin_again()
        except MlflowException:  # it was deleted, or belongs to another store
            return None
        return run

    def finish_late(self, run_id: str, numbers: Mapping[str, float], at: float) -> None:
        """Log metrics of a run whose process could not do so any more, and end it as FINISHED.

        Nothing waits for a store that is away: it is delivered later, as all else.

        Args:
            run_id: Id of the run.
            numbers: Metrics by name.
            at: Their time, seconds since 1970; logged again with the same time, they are the same points.

        Raises:
            UserError: The store refuses it, for example because it does not know the run.
        """
        from mlflow.exceptions import MlflowException

        run = Run(self, run_id)
        try:
            run.begin_again()
            run.metrics(numbers, at=at)
            run.finish(at=at + 1)  # times of artifacts have whole seconds, and no run ends before it begins
        except MlflowException as error:
            raise UserError(f"MLflow at {self.uri} does not accept the end of run {run_id} ({reason(error)})") from None

    def check_delivered(self) -> None:
        """Deliver what waits on this root, at the end of a command.

        Raises:
            UserError: Entries are left; the message says so, and what to do.
        """
        self.outage.retry()
        self.deliverer.deliver_all(self.client)
        left = self.deliverer.undelivered()
        if left:
            why = self.outage.why or "another process is sending them"
            raise UserError(
                f"the results are in {self.outboxes.parent}, but not in MLflow yet: {left:,} "
                f"{'entry waits' if left == 1 else 'entries wait'} in {self.outboxes.name}/, which the next command on "
                f"this output root delivers; {why}"
            )

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

    When a log call returns, the store holds what was logged. While the store is unreachable, or another process sends
    entries of the same run, it is kept in the output root and delivered in order afterwards: with the next log call, or
    when the next process opens a tracker on that root. A log call raises what MLflow says if it refuses the entry.

    Attributes:
        follows_lease: Whether another process continues the run if this one loses a lease; it is then not ended.
    """

    def __init__(self, tracker: Tracker, run_id: str, source: Mapping[str, str | None] | None = None):
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
            self._source = _source_of(self.tracker.outage.wait(lambda: self.client.get_run(self.id)))
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


def _source_of(run: "MlflowRun") -> dict[str, str | None]:
    """Return the `SOURCE_TAGS` of a run as the store has it."""
    return {key: run.data.tags.get(key) for key in SOURCE_TAGS}
