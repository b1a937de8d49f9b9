"""Execution of sweeps with trials that depend on earlier ones: an Optuna search."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rayreid.config import Experiment
from rayreid.config.loading import describe
from rayreid.errors import UserError
from rayreid.pipeline.experiment_folder import folder_of, path_of
from rayreid.pipeline.experiment_runner import Session, experiment_run, is_recorded, run_row
from rayreid.pipeline.graph import plan, shared
from rayreid.pipeline.tags import shared_tags
from rayreid.sweeps.optuna_search import OptunaSearcher, finished
from rayreid.sweeps.ray_tune import run_trials, slots
from rayreid.sweeps.shared_artifacts import produce_all, refused_trials
from rayreid.sweeps.sweep_outcome import Plans, SweepOutcome
from rayreid.sweeps.trials import corners, sweep_of, trial, trials
from rayreid.tracking.run import Run


def run_search(experiment: Experiment, plans: Plans, session: Session, parent: Run) -> SweepOutcome:
    """Run the trials that a search suggests, after the stages that all trials share.

    Args:
        experiment: The experiment with the sweep.
        plans: Artifacts of the experiments at the ends of the searched ranges. All trials share what these share.
        session: Output root, tracking store and screen of the command.
        parent: MLflow run of the sweep.

    Raises:
        UserError: A shared stage failed.
    """
    tags = shared_tags(experiment)
    ends = dict(zip(plans, corners(experiment), strict=True))
    refused = refused_trials(ends, plans, session, parent, tags)
    if len(refused) == len(plans):
        raise UserError(next(iter(refused.values())))
    ahead = shared(plans, least=len(plans))
    failed = produce_all(ahead, slots(experiment), experiment, session, parent, tags)
    if failed:
        raise UserError(next(iter(failed.values())))
    searcher = OptunaSearcher(sweep_of(experiment), folder_of(session.root, experiment))
    failures = run_trials(experiment, {}, searcher, session, parent) if searcher.left else {}
    known = _labelled(experiment, searcher.done())
    for label, one in known.items():
        if not is_recorded(session, one, parent):  # it ran with another tracking store
            with experiment_run(session, one, label, parent) as run:
                run_row(label, one, session, run)
    return SweepOutcome(known, {label: plan(one, session.root) for label, one in known.items()}, failures)


def trials_so_far(experiment: Experiment, root: Path) -> dict[str, Experiment]:
    """Return the trials of a sweep by label: of a search those that it has finished, otherwise all.

    Raises:
        UserError: There is no section `sweep`, a key or value is not valid, or the study of the search is damaged.
    """
    if sweep_of(experiment).search != "optuna":
        return trials(experiment)
    return _labelled(experiment, finished(path_of(root, experiment)))


def _labelled(experiment: Experiment, combinations: Iterable[Mapping[str, Any]]) -> dict[str, Experiment]:
    return {describe(changes): trial(experiment, changes) for changes in combinations}
