"""Sweeps over configuration keys with Ray Tune: each trial is an experiment, and shared stages run first."""

import contextlib
from collections.abc import Iterable, Iterator

from rayreid.config import Experiment
from rayreid.errors import UserError
from rayreid.execution.connection import connect
from rayreid.execution.shared_storage import check_storage
from rayreid.paths import output_root
from rayreid.pipeline.experiment_folder import contents, folder_of, write_results
from rayreid.pipeline.experiment_runner import Session, experiment_run, open_session
from rayreid.pipeline.graph import plan
from rayreid.pipeline.preflight import check, check_workers
from rayreid.pipeline.summary import Row, show_hint
from rayreid.storage.lease import Lease
from rayreid.sweeps.known_trials import run_known
from rayreid.sweeps.optuna_search import require_optuna
from rayreid.sweeps.ray_tune import stops
from rayreid.sweeps.searched_trials import run_search
from rayreid.sweeps.trials import corners, sweep_of, trials
from rayreid.tracking.orphans import ending
from rayreid.tracking.system_metrics import watched


def sweep(experiment: Experiment) -> list[Row]:
    """Run all trials of a sweep, skipping those that are complete, and print the table.

    A trial that fails does not end the sweep: its error is in its MLflow run and in the summary.

    Raises:
        UserError: The user can fix the cause, which is checked before anything starts; or every trial failed.
    """
    searched = sweep_of(experiment).search == "optuna"
    if searched:
        require_optuna()
    known = {str(number): one for number, one in enumerate(corners(experiment))} if searched else trials(experiment)
    root = output_root()
    plans = {label: plan(one, root) for label, one in known.items()}
    check(known.values(), plans)
    _check_stopping(experiment, known.values())
    session = open_session(experiment)
    with (
        alone(session, experiment),
        connect(),
        experiment_run(session, experiment) as parent,
        watched(parent),
        ending(parent),
    ):
        check_storage()
        check_workers(known.values())
        if searched:
            outcome = run_search(experiment, plans, session, parent)
        else:
            outcome = run_known(experiment, known, plans, session, parent)
        stopped = stops(session, experiment)
        rows = outcome.rows()
        write_results(root, experiment, contents(rows))
        outcome.show(session.screen, rows, stopped)
        show_hint(session.screen, session.tracker.uri, session.tracker.experiment_id)
    if not rows:
        raise UserError(f"every trial of the sweep {experiment.name!r} failed; see the errors above")
    session.tracker.check_delivered()
    return rows


@contextlib.contextmanager
def alone(session: Session, experiment: Experiment) -> Iterator[None]:
    """Let only one process run a sweep at a time: a second one waits, and reuses what the first has finished."""

    def waiting() -> None:
        session.screen.say("[dim]waiting for another command that is running this sweep[/]")

    with Lease(folder_of(session.root, experiment) / "lease.json", waiting=waiting):
        yield


def _check_stopping(experiment: Experiment, trials: Iterable[Experiment]) -> None:
    """Refuse a median rule that would have no metric to compare."""
    trained = [one.pretrain for one in trials if one.pretrain.method != "none"]
    if sweep_of(experiment).stop_below_median is not None and not all(one.probe_every for one in trained):
        raise UserError("sweep.stop_below_median needs the probe, but pretrain.probe_every is 0; set it")
