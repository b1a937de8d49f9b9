"""Stage *sweep*: Ray Tune over dotted config keys; a trial is an experiment, what trials share runs before them."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from rich.markup import escape

from rayreid.config import Experiment
from rayreid.config.loading import describe
from rayreid.errors import UserError
from rayreid.execution.connection import connect
from rayreid.execution.shared_storage import check_storage
from rayreid.execution.trainer import METRICS
from rayreid.paths import output_root
from rayreid.pipeline.experiment_runner import (
    Session,
    experiment_run,
    folder_of,
    is_recorded,
    open_session,
    run_row,
    shared_tags,
    write_results,
)
from rayreid.pipeline.graph import plan, shared
from rayreid.pipeline.preflight import check, check_workers
from rayreid.pipeline.summary import Row, row_of, show_hint, show_table, show_times
from rayreid.selection.provenance import provenance_of
from rayreid.stages.training.early_stopping import MedianStopping
from rayreid.storage.artifacts import Artifact
from rayreid.storage.lease import Lease
from rayreid.sweeps.optuna_search import OptunaSearcher, require_optuna
from rayreid.sweeps.ray_tune import run_trials, slots, stops
from rayreid.sweeps.shared_artifacts import blocked, produce_all
from rayreid.sweeps.trials import corners, sweep_of, trial, trials
from rayreid.tracking.orphans import ending
from rayreid.tracking.run import Run
from rayreid.tracking.system_metrics import watched

Plans = Mapping[str, Mapping[str, Artifact]]


def sweep(experiment: Experiment) -> list[Row]:
    """Run all trials of a sweep, or what is missing of them, and show the table.

    A trial that fails does not end the sweep: its error is in its MLflow run and in the summary.

    Raises:
        UserError: what the user can mend, checked before anything starts; or every trial failed.
    """
    searched = sweep_of(experiment).search == "optuna"
    if searched:
        require_optuna()
    root = output_root()
    known = trials(experiment)
    checked = dict(enumerate(corners(experiment))) if searched else known
    plans = {str(label): plan(one, root) for label, one in checked.items()}
    check(checked.values(), plans)
    _check_stopping(experiment, checked.values())
    session = open_session(experiment)
    with (
        alone(session, experiment),
        connect(),
        experiment_run(session, experiment) as parent,
        watched(parent),
        ending(parent),
    ):
        check_storage()
        check_workers(checked.values())
        ahead = shared(plans, least=len(plans)) if searched else shared(_distinct(plans))
        failed = produce_all(ahead, slots(experiment), experiment, session, parent, shared_tags(experiment))
        if searched:
            if failed:
                raise UserError(next(iter(failed.values())))
            searcher = OptunaSearcher(sweep_of(experiment), folder_of(root, experiment))
            failures = run_trials(experiment, {}, searcher, session, parent) if searcher.left else {}
            known = {describe(changes): trial(experiment, changes) for changes in searcher.done()}
            plans = {label: plan(one, root) for label, one in known.items()}
            for label, one in known.items():
                if not is_recorded(session, one, parent):  # it was made while another tracking store was in use
                    with experiment_run(session, one, label, parent) as run:
                        run_row(label, one, session, run)
        else:
            failures = _run_known(experiment, known, plans, failed, session, parent)
        ended = stops(session, experiment)
        rows = [
            row_of(label, graph, provenance_of(known[label].pool))
            for label, graph in plans.items()
            if graph["metrics"].complete
        ]
        write_results(session, experiment, rows)
        show_table(session.screen, rows)
        show_times(session.screen, plans.values())
        for label, error in failures.items():
            session.screen.say(f"[red]failed[/] {escape(label)}: {escape(error)}")
        for label, why in ended.items():
            session.screen.say(f"[yellow]ended early[/] {escape(label)}: {escape(why)}")
        show_hint(session.screen, session.tracker.uri, session.tracker.experiment_id)
    if not rows:
        raise UserError(f"every trial of the sweep {experiment.name!r} failed; see the errors above")
    return rows


@contextlib.contextmanager
def alone(session: Session, experiment: Experiment) -> Iterator[None]:
    """One command at a time is at a sweep: a second one waits, and finds what the first has finished."""

    def waiting() -> None:
        session.screen.say("[dim]another command is at this sweep, and is waited for[/]")

    with Lease(folder_of(session.root, experiment) / "lease.json", waiting=waiting):
        yield


def _first_like(plans: Plans, label: str) -> str:
    """The first trial that comes to the same result."""
    return next(first for first, graph in plans.items() if graph["metrics"].id == plans[label]["metrics"].id)


def _distinct(plans: Plans) -> dict[str, Mapping[str, Artifact]]:
    """The plans without those that come to the same result as an earlier one, as all fractions of 1 do."""
    return {label: graph for label, graph in plans.items() if _first_like(plans, label) == label}


def _run_known(
    experiment: Experiment,
    known: Mapping[str, Experiment],
    plans: Plans,
    failed: Mapping[str, str],
    session: Session,
    parent: Run,
) -> dict[str, str]:
    """Run the trials of a grid or of drawn ones; returns the errors of those that failed.

    Tune is given those alone that are yet to be run. What is complete already, or stands on a stage that failed, is put
    down here.
    """
    ended = stops(session, experiment)
    unfinished = {label: graph for label, graph in _distinct(plans).items() if label not in ended}
    open_ones = {label: graph for label, graph in unfinished.items() if not graph["metrics"].complete}
    reasons = {label: blocked(graph["metrics"], failed) for label, graph in open_ones.items()}
    failures = {label: reason for label, reason in reasons.items() if reason is not None}
    todo = {label: known[label] for label in open_ones if label not in failures}
    if todo:
        stopping = _rivals(experiment, plans)
        failures |= run_trials(experiment, todo, None, session, parent, stopping)
    causes = {plans[label]["metrics"].id: error for label, error in failures.items()}
    for label, one in known.items():
        metrics = plans[label]["metrics"]
        if label in todo or label in ended or (metrics.complete and is_recorded(session, one, parent)):
            continue
        with experiment_run(session, one, label, parent) as run:
            if metrics.complete:
                run_row(label, one, session, run)
            elif metrics.id in causes:
                failures[label] = causes[metrics.id]
                run.fail(failures[label])
            else:  # it is the same as one that was ended early
                run.give_up(stops(session, experiment)[_first_like(plans, label)])
    return failures


def _check_stopping(experiment: Experiment, trials: Iterable[Experiment]) -> None:
    """A rule that would look at nothing."""
    trained = [one.pretrain for one in trials if one.pretrain.method != "none"]
    if sweep_of(experiment).stop_below_median is not None and not all(one.probe_every for one in trained):
        raise UserError("sweep.stop_below_median goes by the probe, but pretrain.probe_every is 0; set it")


def _rivals(experiment: Experiment, plans: Plans) -> MedianStopping | None:
    """What the trials' pre-trainings are held against: one another. Those that several share ran before, unjudged."""
    grace = sweep_of(experiment).stop_below_median
    if grace is None:
        return None
    journals = {graph["weights"].path / METRICS: None for graph in plans.values() if "weights" in graph}
    return MedianStopping(tuple(journals), grace)
