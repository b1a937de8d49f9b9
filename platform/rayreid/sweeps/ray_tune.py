"""Trials of a sweep run by Ray Tune: each in its own process, restarted if that is lost with its node."""

import contextlib
import json
import logging
import os
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.util import get_node_ip_address
from rich.markup import escape

from rayreid.config import Experiment
from rayreid.console import Screen
from rayreid.disk_faults import as_storage_error
from rayreid.errors import StoppedEarly, UserError, one_line
from rayreid.execution.actor_pool import LOST
from rayreid.execution.interrupts import handler_kept
from rayreid.execution.resources import living_nodes, training_share, trainings_at_once
from rayreid.files import write_atomically
from rayreid.masking import masked
from rayreid.paths import output_root
from rayreid.pipeline.experiment_folder import folder_of
from rayreid.pipeline.experiment_runner import Session, experiment_run, open_session, run_row
from rayreid.stages.training.early_stopping import MedianStopping
from rayreid.state_files import if_whole
from rayreid.sweeps.optuna_search import OptunaSearcher
from rayreid.sweeps.stop_notes import note_paths, read_note, write_note
from rayreid.sweeps.trials import sweep_of, trial
from rayreid.tracking.database import SQLITE
from rayreid.tracking.outage import PATIENCE_SECONDS
from rayreid.tracking.run import Run
from rayreid.tracking.store import tracking_uri

_FAILED, _STOPPED = "failed", "stopped"
"""Keys that a trial reports instead of metrics: why it failed; that it was stopped early."""


def run_trials(
    experiment: Experiment,
    todo: Mapping[str, Experiment],
    searcher: OptunaSearcher | None,
    session: Session,
    parent: Run,
    stopping: MedianStopping | None = None,
) -> dict[str, str]:
    """Run trials, either those of `todo` or those of a searcher.

    A trial that loses its process, for example with its node, restarts up to `resources.max_failures` times and
    resumes from its artifacts.

    Args:
        experiment: The experiment with the sweep.
        todo: Experiments of the trials by label.
        searcher: Suggests the trials instead; None: run those of `todo`.
        session: Output root, tracking store and screen of the command.
        parent: MLflow run of the sweep.
        stopping: The median rule; None: no trial is stopped early.

    Returns:
        The errors of the failed trials, by label.

    Raises:
        KeyboardInterrupt: Tune was interrupted. Tune ends its trials itself, and returns without an error.
    """
    total = searcher.left if searcher else len(todo)
    # A trial's own process only waits for its Train workers. If it had a CPU, trials and workers could hold all CPUs
    # between them and wait forever. Tune refuses zero CPUs, so the process takes a token amount of memory instead.
    run_trial = partial(_trial, todo=dict(todo), experiment=experiment, parent=parent.id, stopping=stopping)
    trainable = tune.with_resources(run_trial, {"memory": 2**20, **_on_this_machine(tracking_uri(session.root))})
    tuner = tune.Tuner(
        trainable,
        param_space={} if searcher else {"label": tune.grid_search(list(todo))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=_concurrent(experiment),
            search_alg=searcher,
            num_samples=total if searcher else 1,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder_of(session.root, experiment)),
            verbose=0,
            callbacks=[_Teller(session.screen, total)],
            failure_config=tune.FailureConfig(max_failures=experiment.resources.max_failures),
        ),
    )
    # Tune prints the traceback of a lost trial; we report one line at the end, and Tune's own files have the rest.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output prints lines even with `verbose=0`
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a failed trial has no metric for the searcher
    failures: dict[str, str] = {}
    with handler_kept():
        results = tuner.fit()
    for result in (results[number] for number in range(len(results))):
        config, told = result.config or {}, result.metrics or {}
        label = str(config.get("label", "?"))
        if result.error is not None:
            failures[label] = one_line(result.error, "last")
            with experiment_run(session, _experiment_of(config, todo, experiment), label, parent) as run:
                run.fail(failures[label])  # its own process has ended and could not record it
        elif _FAILED in told:
            failures[label] = told[_FAILED]
        elif not {"mAP", _STOPPED} & told.keys():
            raise KeyboardInterrupt
    return failures


def _on_this_machine(store: str) -> dict[str, float]:
    """Return the resource that keeps the trials' own processes on this machine, if the tracking store needs that.

    They write to MLflow. A server may be written from everywhere, but a database file must not be written by several
    machines: the locks that it relies on do not hold between the clients of a network file system.
    """
    return {f"node:{get_node_ip_address()}": 0.001} if store.startswith(SQLITE) else {}


def stops(session: Session, experiment: Experiment) -> dict[str, str]:
    """Return the trials that were stopped early, now or by an earlier command: label → reason."""
    paths = note_paths(session.root, experiment)
    notes = [if_whole(path, partial(read_note, path), "its trial is run again") for path in paths]
    return {note["label"]: note["why"] for note in notes if note is not None}


def slots(experiment: Experiment) -> int:
    """Return how many trainings fit the cluster at the same time, counting only whole workers per node."""
    return trainings_at_once(training_share(experiment.resources), living_nodes())


def _trial(
    config: dict[str, Any],
    todo: Mapping[str, Experiment],
    experiment: Experiment,
    parent: str,
    stopping: MedianStopping | None = None,
) -> None:
    """Run one trial, in its own process.

    An error is reported, not raised: Tune would restart the trial, which would only fail again. Tune should only
    restart trials that were lost with a node.
    """
    label = config["label"]
    try:
        one = _experiment_of(config, todo, experiment)
    except UserError as error:  # each value was checked on its own, but this combination is invalid
        tune.report({_FAILED: _put_down(label, error, experiment, parent)})
        return
    failure = folder_of(output_root(), one) / "error.txt"
    failure.unlink(missing_ok=True)
    try:
        reached = _reach(label, one, experiment, parent, stopping)
    except LOST:
        raise
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk may be full
            write_atomically(failure, masked(traceback.format_exc()))
        error = as_storage_error(error, output_root()) or error
        reached = {_FAILED: one_line(error, "last")}
    tune.report(reached)


def _put_down(label: str, error: UserError, experiment: Experiment, parent: str) -> str:
    """Record in MLflow why a suggestion is not a valid experiment, and return the reason."""
    owner = Run(open_session(experiment, Screen(), PATIENCE_SECONDS).tracker, parent)
    with owner.child(label, {"experiment": experiment.name, "row": label, "level": "experiment"}) as run:
        run.fail(str(error))
    return one_line(error, "last")


def _experiment_of(config: Mapping[str, Any], todo: Mapping[str, Experiment], experiment: Experiment) -> Experiment:
    """Return the experiment of a trial, which was known beforehand or suggested by a searcher."""
    return todo[config["label"]] if config["label"] in todo else trial(experiment, json.loads(config["changes"]))


def _reach(
    label: str, one: Experiment, experiment: Experiment, parent: str, stopping: MedianStopping | None
) -> dict[str, Any]:
    """Run a trial and return its metrics, or a mark that it was stopped early."""
    session = open_session(experiment, Screen(), PATIENCE_SECONDS)
    with experiment_run(session, one, label, Run(session.tracker, parent)) as run:
        try:
            return dict(run_row(label, one, session, run, stopping).metrics())
        except StoppedEarly as ended:
            run.give_up(str(ended))
            write_note(session.root, experiment, one, label, str(ended))
            return {_STOPPED: 1.0}


class _Teller(tune.Callback):
    """Prints when trials begin and end."""

    def __init__(self, screen: Screen, total: int):
        self.screen, self.total, self.done = screen, total, 0

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.screen.say(f"[bold]▸ trial[/] {escape(trial.config['label'])}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        result = trial.last_result or {}
        if _FAILED in result:
            self.on_trial_error(iteration, trials, trial)
            return
        self.done += 1
        if _STOPPED in result:
            self.screen.say(f"  [yellow]![/] {self.done}/{self.total}  {escape(trial.config['label'])}  ended early")
            return
        scores = f"mAP {100 * result['mAP']:.1f}  Rank-1 {100 * result['rank1']:.1f}" if "mAP" in result else ""
        self.screen.say(f"  [green]✓[/] {self.done}/{self.total}  {escape(trial.config['label'])}  {scores}")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.screen.say(f"  [yellow]![/] {escape(trial.config['label'])} was lost with its process, and begins again")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.done += 1
        self.screen.say(f"  [red]✗[/] {self.done}/{self.total}  {escape(trial.config['label'])}")


def _concurrent(experiment: Experiment) -> int:
    """Return how many trials run at a time: `sweep.max_concurrent`, or as many as the cluster can train at once."""
    most = sweep_of(experiment).max_concurrent
    return slots(experiment) if most == "auto" else most
