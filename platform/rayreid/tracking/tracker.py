"""A tracking store with one MLflow experiment: starting runs in it, finding them again, delivering what waits.

The default store is a SQLite database in the output root and needs no server; `MLFLOW_TRACKING_URI` overrides it. Runs
are addressed by id through the client, never through MLflow's global active run, so several can be open at once and a
later process can continue one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayreid import __version__
from rayreid.errors import UserError
from rayreid.files import make_folder
from rayreid.masking import masked
from rayreid.tracking.deliverer import Deliverer
from rayreid.tracking.outage import Outage, reason
from rayreid.tracking.revision import DIRTY, git_sha, source_in, source_tags
from rayreid.tracking.run import PARENT, Run
from rayreid.tracking.run_note import RunNote
from rayreid.tracking.store import open_store, tracking_uri, without_retries

_MARK = "rayreid.mark"


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
        parent: Run | None = None,
        note: RunNote | None = None,
    ) -> Run:
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

        def create() -> Run:
            nonlocal tried
            left = self._marked(given[_MARK]) if tried else None
            if left is not None:
                return left
            tried = True  # from now on a run may be there although no answer has come
            with without_retries():
                created = self.client.create_run(self.experiment_id, run_name=name, tags=given)
            return Run(self, created.info.run_id, source)

        return self.outage.wait(create)

    def _marked(self, mark: str) -> Run | None:
        """Return the run that was created with a mark, RUNNING again; None if there is none.

        Of several, which a server has created that was slow to answer, all but the first are ended.
        """
        experiments = [one.experiment_id for one in self.client.search_experiments()]  # artifacts are shared by them
        found = self.client.search_runs(experiments, f"tags.`{_MARK}` = '{mark}'", order_by=["start_time ASC"])
        for double in found[1:]:
            Run(self, double.info.run_id).finish("KILLED")
        if not found:
            return None
        left = Run(self, found[0].info.run_id, source_in(found[0].data.tags))
        left.begin_again()
        return left

    def resume(self, run_id: str) -> Run | None:
        """Continue a run of an earlier process; return None if the store does not know it.

        Raises:
            UserError: The store stayed unreachable.
        """
        from mlflow.exceptions import MlflowException

        try:
            found = self.outage.wait(lambda: self.client.get_run(run_id))
            run = Run(self, run_id, source_in(found.data.tags))
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
