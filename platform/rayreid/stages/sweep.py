"""Stage *sweep*: Ray Tune over dotted config keys; a trial is an experiment, what trials share runs before them."""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.markup import escape

from rayreid.artifacts import Artifact, make_folder, output_root, write_atomically
from rayreid.cluster import connect, training_share
from rayreid.config import Experiment
from rayreid.errors import UserError
from rayreid.experiment_file import describe
from rayreid.outage import PATIENCE_SECONDS
from rayreid.stages.checks import check, check_workers
from rayreid.stages.early_stopping import HopelessError, Rivals
from rayreid.stages.experiment import (
    Desk,
    digest_of,
    experiment_run,
    folder_of,
    is_recorded,
    open_desk,
    run_row,
    shared_tags,
    write_results,
)
from rayreid.stages.plan import plan, shared
from rayreid.stages.progress import Screen
from rayreid.stages.provenance import provenance_of
from rayreid.stages.searchers import OptunaSearcher, require_optuna
from rayreid.stages.side_by_side import blocked, produce_all, reason_of
from rayreid.stages.storage import check_storage
from rayreid.stages.summary import Row, row_of, show_hint, show_table, show_times
from rayreid.stages.system_metrics import watched
from rayreid.stages.trainer import METRICS
from rayreid.stages.trials import corners, sweep_of, trial, trials
from rayreid.tracking import Run

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
    desk = open_desk(experiment)
    with connect(), experiment_run(desk, experiment) as parent, watched(parent):
        check_storage()
        check_workers(checked.values())
        ahead = shared(plans, least=len(plans)) if searched else shared(_distinct(plans))
        failed = produce_all(ahead, _slots(experiment), experiment, desk, parent, shared_tags(experiment))
        if searched:
            if failed:
                raise UserError(next(iter(failed.values())))
            searcher = OptunaSearcher(sweep_of(experiment), folder_of(root, experiment))
            failures = _tune(experiment, {}, searcher, desk, parent) if searcher.left else {}
            known = {describe(changes): trial(experiment, changes) for changes in searcher.done()}
            plans = {label: plan(one, root) for label, one in known.items()}
        else:
            failures = _run_known(experiment, known, plans, failed, desk, parent)
        stops = _stops(desk, experiment)
        rows = [
            row_of(label, graph, provenance_of(known[label].pool))
            for label, graph in plans.items()
            if graph["metrics"].complete
        ]
        write_results(desk, experiment, rows)
        show_table(desk.screen, rows)
        show_times(desk.screen, plans.values())
        for label, error in failures.items():
            desk.screen.say(f"[red]failed[/] {escape(label)}: {escape(error)}")
        for label, why in stops.items():
            desk.screen.say(f"[yellow]ended early[/] {escape(label)}: {escape(why)}")
        show_hint(desk.screen, desk.tracker.uri)
    if not rows:
        raise UserError(f"every trial of the sweep {experiment.name!r} failed; see the errors above")
    return rows


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
    desk: Desk,
    parent: Run,
) -> dict[str, str]:
    """Run the trials of a grid or of drawn ones; returns the errors of those that failed.

    Tune is given those alone that are yet to be run. What is complete already, or stands on a stage that failed, is put
    down here.
    """
    ended = _stops(desk, experiment)
    unfinished = {label: graph for label, graph in _distinct(plans).items() if label not in ended}
    open_ones = {label: graph for label, graph in unfinished.items() if not graph["metrics"].complete}
    reasons = {label: blocked(graph["metrics"], failed) for label, graph in open_ones.items()}
    failures = {label: reason for label, reason in reasons.items() if reason is not None}
    todo = {label: known[label] for label in open_ones if label not in failures}
    if todo:
        rivals = _rivals(experiment, plans)
        failures |= _tune(experiment, todo, None, desk, parent, rivals)
    causes = {plans[label]["metrics"].id: error for label, error in failures.items()}
    for label, one in known.items():
        metrics = plans[label]["metrics"]
        if label in todo or label in ended or (metrics.complete and is_recorded(desk, one, parent)):
            continue
        with experiment_run(desk, one, label, parent) as run:
            if metrics.complete:
                run_row(label, one, desk, run)
            elif metrics.id in causes:
                failures[label] = causes[metrics.id]
                run.fail(failures[label])
            else:  # it is the same as one that was ended early
                run.give_up(_stops(desk, experiment)[_first_like(plans, label)])
    return failures


def _tune(
    experiment: Experiment,
    todo: Mapping[str, Experiment],
    searcher: OptunaSearcher | None,
    desk: Desk,
    parent: Run,
    rivals: Rivals | None = None,
) -> dict[str, str]:
    """Run trials, those of `todo` or those of a searcher; returns the errors of those that failed."""
    folder = folder_of(desk.root, experiment)
    total = searcher.left if searcher else len(todo)
    # A trial's own process only waits for its Train workers. With a CPU for it, trials and workers could hold all
    # CPUs between them and wait for ever; zero CPUs is refused; so it takes a token amount of memory.
    run_trial = partial(_trial, todo=dict(todo), experiment=experiment, parent=parent.id, rivals=rivals)
    trainable = tune.with_resources(run_trial, {"memory": 2**20})
    tuner = tune.Tuner(
        trainable,
        param_space={} if searcher else {"label": tune.grid_search(list(todo))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=_concurrent(experiment),
            search_alg=searcher,
            num_samples=total if searcher else 1,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder), verbose=0, callbacks=[_Teller(desk.screen, total)]
        ),
    )
    # Tune prints the traceback of a failed trial; its one line is told at the end, the rest is in Tune's own files.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    results = tuner.fit()
    return {
        str((result.config or {}).get("label", "?")): reason_of(result.error)
        for result in results
        if result.error is not None
    }


def _trial(
    config: dict[str, Any],
    todo: Mapping[str, Experiment],
    experiment: Experiment,
    parent: str,
    rivals: Rivals | None = None,
) -> None:
    label = config["label"]
    one = todo[label] if label in todo else trial(experiment, json.loads(config["changes"]))
    desk = open_desk(experiment, Screen(), PATIENCE_SECONDS)
    with experiment_run(desk, one, label, Run(desk.tracker, parent)) as run:
        try:
            reached = run_row(label, one, desk, run, rivals).metrics()
        except HopelessError as ended:
            run.give_up(str(ended))
            note = {"label": label, "why": str(ended)}
            write_atomically(_stop_folder(desk, experiment) / f"{digest_of(one)}.json", json.dumps(note))
            reached = {"stopped": 1.0}
    tune.report(reached)


def _rivals(experiment: Experiment, plans: Plans) -> Rivals | None:
    """What the trials' pre-trainings are held against: one another. Those that several share ran before, unjudged."""
    grace = sweep_of(experiment).stop_below_median
    if grace is None:
        return None
    journals = {graph["weights"].path / METRICS: None for graph in plans.values() if "weights" in graph}
    return Rivals(tuple(journals), grace)


def _stops(desk: Desk, experiment: Experiment) -> dict[str, str]:
    """The trials that were ended early, now or by an earlier command: label → why."""
    notes = [json.loads(path.read_text()) for path in sorted(_stop_folder(desk, experiment).glob("*.json"))]
    return {note["label"]: note["why"] for note in notes}


def _stop_folder(desk: Desk, experiment: Experiment) -> Path:
    folder = folder_of(desk.root, experiment) / "stopped"
    make_folder(folder)
    return folder


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
    """Trials at a time: as many as the cluster can train side by side, unless the file says how many."""
    most = sweep_of(experiment).max_concurrent
    return _slots(experiment) if most == "auto" else most


def _slots(experiment: Experiment) -> int:
    """Trainings that fit the cluster side by side; what a node has left over after whole workers fits none."""
    share = training_share(experiment.resources)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = [
        int(min(node.get("CPU", 0) // share.cpus, node.get("GPU", 0) if share.gpu else node.get("CPU", 0)))
        for node in nodes
    ]
    return max(1, sum(fitting) // share.workers)
