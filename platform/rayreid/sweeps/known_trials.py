"""Execution of sweeps with trials that are known beforehand: grids and random searches."""

from collections.abc import Container, Mapping

from rayreid.config import Experiment
from rayreid.execution.trainer import METRICS
from rayreid.pipeline.experiment_runner import Session, experiment_run, is_recorded, run_row
from rayreid.pipeline.graph import shared
from rayreid.pipeline.tags import shared_tags
from rayreid.stages.training.early_stopping import MedianStopping
from rayreid.storage.artifacts import Artifact
from rayreid.sweeps.ray_tune import run_trials, slots, stops
from rayreid.sweeps.shared_artifacts import blocked, produce_all, refused_trials
from rayreid.sweeps.sweep_outcome import Plans, SweepOutcome
from rayreid.sweeps.trials import sweep_of
from rayreid.tracking.run import Run


def run_known(
    experiment: Experiment, known: Mapping[str, Experiment], plans: Plans, session: Session, parent: Run
) -> SweepOutcome:
    """Run the trials of a grid or a random search, which are known beforehand, after the stages that they share.

    Tune runs only the trials that have no result yet. Those that are complete already, or depend on a stage that
    failed, are recorded in MLflow here.

    Args:
        experiment: The experiment with the sweep.
        known: The trials by label.
        plans: The artifacts of the trials.
        session: Output root, tracking store and screen of the command.
        parent: MLflow run of the sweep.
    """
    tags = shared_tags(experiment)
    refused = refused_trials(known, plans, session, parent, tags)
    usable = {label: graph for label, graph in plans.items() if label not in refused}
    failed = produce_all(shared(_distinct(usable)), slots(experiment), experiment, session, parent, tags)
    failed |= {plans[label]["metrics"].id: reason for label, reason in refused.items()}
    return SweepOutcome(known, plans, _run_missing(experiment, known, plans, failed, session, parent))


def _run_missing(
    experiment: Experiment,
    known: Mapping[str, Experiment],
    plans: Plans,
    failed: Mapping[str, str],
    session: Session,
    parent: Run,
) -> dict[str, str]:
    """Run the trials that have no result yet, record the others; return the errors of those that failed."""
    ended = stops(session, experiment)
    unfinished = {label: graph for label, graph in _distinct(plans).items() if label not in ended}
    open_ones = {label: graph for label, graph in unfinished.items() if not graph["metrics"].complete}
    reasons = {label: blocked(graph["metrics"], failed) for label, graph in open_ones.items()}
    failures = {label: reason for label, reason in reasons.items() if reason is not None}
    todo = {label: known[label] for label in open_ones if label not in failures}
    if todo:
        stopping = _rivals(experiment, plans)
        failures |= run_trials(experiment, todo, None, session, parent, stopping)
    failures |= _record(known, plans, {*todo, *ended}, failures, experiment, session, parent)
    return failures


def _record(
    known: Mapping[str, Experiment],
    plans: Plans,
    recorded: Container[str],
    failures: Mapping[str, str],
    experiment: Experiment,
    session: Session,
    parent: Run,
) -> dict[str, str]:
    """Record in MLflow the trials that Tune did not run; return the errors of those that failed.

    Args:
        known, plans: See `run_known`.
        recorded: Labels of the trials that have their runs in MLflow.
        failures: Errors of the trials that have failed so far, by label.
        experiment, session, parent: See `run_known`.
    """
    causes = {plans[label]["metrics"].id: error for label, error in failures.items()}
    found: dict[str, str] = {}
    for label, one in known.items():
        metrics = plans[label]["metrics"]
        if label in recorded or (metrics.complete and is_recorded(session, one, parent)):
            continue
        with experiment_run(session, one, label, parent) as run:
            if metrics.complete:
                run_row(label, one, session, run)
            elif metrics.id in causes:
                found[label] = causes[metrics.id]
                run.fail(found[label])
            else:  # it shares its result with a trial that was stopped early
                run.give_up(stops(session, experiment)[_first_like(plans, label)])
    return found


def _first_like(plans: Plans, label: str) -> str:
    """Return the first trial that has the same result."""
    return next(first for first, graph in plans.items() if graph["metrics"].id == plans[label]["metrics"].id)


def _distinct(plans: Plans) -> dict[str, Mapping[str, Artifact]]:
    """Return the plans without those that repeat an earlier result, as all strategies do at a fraction of 1."""
    return {label: graph for label, graph in plans.items() if _first_like(plans, label) == label}


def _rivals(experiment: Experiment, plans: Plans) -> MedianStopping | None:
    """Return the rule that compares the pre-trainings of the trials with one another, if the sweep has one.

    Pre-trainings that several trials share have already run; the rule does not stop them.
    """
    grace = sweep_of(experiment).stop_below_median
    if grace is None:
        return None
    journals = {graph["weights"].path / METRICS: None for graph in plans.values() if "weights" in graph}
    return MedianStopping(tuple(journals), grace)
