"""Stage *sweep*: Ray Tune over dotted config keys; a trial is an experiment, what trials share runs before them."""

import itertools
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
from ray import tune
from rich.markup import escape

from rayreid.artifacts import output_root
from rayreid.cluster import connect, training_share
from rayreid.config import Experiment
from rayreid.errors import UserError
from rayreid.experiment_file import change, describe
from rayreid.stages.checks import check, check_workers
from rayreid.stages.experiment import (
    Desk,
    experiment_run,
    folder_of,
    open_desk,
    run_row,
    shared_tags,
    write_results,
)
from rayreid.stages.plan import plan, shared
from rayreid.stages.production import produce
from rayreid.stages.progress import Screen
from rayreid.stages.provenance import provenance_of
from rayreid.stages.storage import check_storage
from rayreid.stages.summary import Row, row_of, show_hint, show_table, show_times
from rayreid.tracking import Run


def trials(experiment: Experiment) -> dict[str, Experiment]:
    """The experiments of a sweep by label: every combination of the values of `sweep.parameters`.

    Raises:
        UserError: there is no `sweep` section, or a key or value that an experiment may not have.
    """
    if experiment.sweep is None:
        raise UserError(f"experiment {experiment.name!r} has no section sweep: name keys under sweep.parameters")
    alone = experiment.model_copy(update={"compare": [], "sweep": None})
    keys = list(experiment.sweep.parameters)
    combinations = [
        dict(zip(keys, values, strict=True)) for values in itertools.product(*experiment.sweep.parameters.values())
    ]
    return {describe(changes): change(alone, changes, "sweep.parameters") for changes in combinations}


def sweep(experiment: Experiment) -> list[Row]:
    """Run all trials of a sweep, or what is missing of them, and show the table.

    A trial that fails does not end the sweep: its error is in its MLflow run and in the summary.

    Raises:
        UserError: what the user can mend, checked before anything starts; or every trial failed.
    """
    todo = trials(experiment)
    root = output_root()
    plans = {label: plan(trial, root) for label, trial in todo.items()}
    check(todo.values(), plans)
    desk = open_desk(experiment)
    with connect(), experiment_run(desk, experiment) as parent:
        check_storage()
        check_workers(todo.values())
        for artifact in shared(plans):
            produce(artifact, parent, desk.screen, shared_tags(experiment))
        failures = _tune(experiment, todo, desk, parent)
        rows = [
            row_of(label, graph, provenance_of(todo[label].pool))
            for label, graph in plans.items()
            if graph["metrics"].complete
        ]
        write_results(desk, experiment, rows)
        show_table(desk.screen, rows)
        show_times(desk.screen, plans.values())
        for label, error in failures.items():
            desk.screen.say(f"[red]failed[/] {escape(label)}: {escape(error)}")
        show_hint(desk.screen, desk.tracker.uri)
    if not rows:
        raise UserError(f"every trial of the sweep {experiment.name!r} failed; see the errors above")
    return rows


def _tune(experiment: Experiment, todo: Mapping[str, Experiment], desk: Desk, parent: Run) -> dict[str, str]:
    """Run the trials; returns the errors of those that failed."""
    assert experiment.sweep is not None
    folder = folder_of(desk.root, experiment)
    # A trial's own process only waits for its Train workers. With a CPU for it, trials and workers could hold all
    # CPUs between them and wait for ever; zero CPUs is refused; so it takes a token amount of memory.
    trainable = tune.with_resources(
        partial(_trial, trials=dict(todo), experiment=experiment, parent=parent.id),
        {"memory": 2**20},
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"label": tune.grid_search(list(todo))},
        tune_config=tune.TuneConfig(max_concurrent_trials=_concurrent(experiment)),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder), verbose=0, callbacks=[_Teller(desk.screen, len(todo))]
        ),
    )
    # Tune prints the traceback of a failed trial; its one line is told at the end, the rest is in Tune's own files.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    results = tuner.fit()
    return {
        str((result.config or {}).get("label", "?")): str(result.error).strip().splitlines()[-1]
        for result in results
        if result.error is not None
    }


def _trial(config: dict[str, Any], trials: Mapping[str, Experiment], experiment: Experiment, parent: str) -> None:
    label = config["label"]
    desk = open_desk(experiment, Screen())
    owner = Run(desk.tracker, parent)
    with experiment_run(desk, trials[label], label, owner) as run:
        row = run_row(label, trials[label], desk, run)
    tune.report(row.metrics())


class _Teller(tune.Callback):
    """Says when trials begin and end."""

    def __init__(self, screen: Screen, total: int):
        self.screen, self.total, self.done = screen, total, 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.screen.say(f"[bold]▸ trial[/] {escape(trial.config['label'])}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        result = trial.last_result or {}
        scores = f"mAP {100 * result['mAP']:.1f}  Rank-1 {100 * result['rank1']:.1f}" if "mAP" in result else ""
        self.screen.say(f"  [green]✓[/] {self.done}/{self.total}  {escape(trial.config['label'])}  {scores}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        self.screen.say(f"  [red]✗[/] {self.done}/{self.total}  {escape(trial.config['label'])}")


def _concurrent(experiment: Experiment) -> int:
    """As many trials at a time as the cluster can train side by side."""
    assert experiment.sweep is not None
    if experiment.sweep.max_concurrent != "auto":
        return experiment.sweep.max_concurrent
    share = training_share(experiment.resources)
    total = ray.cluster_resources()
    slots = total.get("GPU", 0) / share.workers if share.gpu else total["CPU"] / (share.workers * share.cpus)
    return max(1, int(slots))
