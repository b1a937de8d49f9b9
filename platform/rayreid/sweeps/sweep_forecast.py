"""The forecast of any experiment file: one experiment, its rows, or the trials of its sweep."""

from collections.abc import Container
from dataclasses import replace

from rayreid.config import Experiment
from rayreid.config.loading import describe, rows
from rayreid.errors import UserError, escaped
from rayreid.paths import output_root
from rayreid.pipeline.experiment_folder import path_of
from rayreid.pipeline.forecast.forecast import Forecast
from rayreid.pipeline.forecast.forecasting import forecast
from rayreid.pipeline.forecast.planned_machine import PlannedMachine, machine_here
from rayreid.pipeline.forecast.stand_ins import SearchedKey, StandIns
from rayreid.pipeline.forecast.standings import State
from rayreid.state_files import DamagedFileError
from rayreid.sweeps.stop_notes import stopped_trials
from rayreid.sweeps.trials import corners_by_key, sweep_of, trial, trials

_SEARCH = (
    "the trials of a search are chosen while it runs: these are the ends of its ranges, and their mean cost stands for "
    "each of the {trials} trials"
)
_FINISHED = "{count} of {trials} trials of the search have finished; what is left is planned"
_STOPPED = "{count} of {trials} trials were stopped early by an earlier run, and are not run again"
_STOPPING = "sweep.stop_below_median may end pre-trainings early, which would take less"


def forecast_of(experiment: Experiment, gpus: int | None = None, cpus: int | None = None) -> Forecast:
    """Return what a run of a file would do and cost, without starting or writing anything.

    Args:
        experiment: The experiment of the file.
        gpus, cpus: The machine to estimate for; None: those of this machine.

    Raises:
        UserError: No row or trial can be planned, or the machine cannot hold the workers.
    """
    machine, root = machine_here(gpus, cpus), output_root()
    if experiment.sweep is None:
        kind = "comparison" if experiment.compares else "experiment"
        machine.training(experiment.resources)
        return forecast(rows(experiment), experiment, root, machine, kind)
    return _of_sweep(experiment, machine)


def _of_sweep(experiment: Experiment, machine: PlannedMachine) -> Forecast:
    sweep, root = sweep_of(experiment), output_root()
    places = machine.at_once(experiment.resources)
    if sweep.max_concurrent != "auto":
        places = min(places, sweep.max_concurrent)
    if sweep.search == "optuna":
        return _of_search(experiment, machine, places)
    found = forecast(trials(experiment), experiment, root, machine, "sweep", places)
    found = _without(stopped_trials(root, experiment), found)
    if sweep.stop_below_median is not None and found.to_make:
        found = replace(found, notes=(*found.notes, _STOPPING))
    return found


def _without(stopped: Container[str], found: Forecast) -> Forecast:
    """Return a forecast without what would only be made for trials that were stopped early, or share their result."""
    results = [step.users for step in found.steps if step.role == "metrics"]
    ended = {label for users in results if any(one in stopped for one in users) for label in users}
    if not ended:
        return found
    steps = [step for step in found.steps if step.standing.state is State.REUSED or not ended.issuperset(step.users)]
    note = _STOPPED.format(count=len(ended), trials=len(found.labels))
    return replace(found, steps=tuple(steps), notes=(*found.notes, note))


def _of_search(experiment: Experiment, machine: PlannedMachine, places: int) -> Forecast:
    sweep, root = sweep_of(experiment), output_root()
    done, notes = _finished(experiment)
    left = max(0, (sweep.trials or 0) - len(done))
    if not left:
        found = forecast(done, experiment, root, machine, "sweep", places)
        return replace(found, notes=(*found.notes, *notes))
    known, keys = _ends(experiment)
    found = forecast(known, experiment, root, machine, "sweep", places)
    if done:
        notes.append(_FINISHED.format(count=len(done), trials=sweep.trials))
    notes.append(_SEARCH.format(trials=left))
    return replace(found, notes=(*found.notes, *notes), searched=StandIns(left, keys))


def _ends(experiment: Experiment) -> tuple[dict[str, Experiment], tuple[SearchedKey, ...]]:
    """Return the experiments at the ends of a search's ranges by label, and the keys that vary in them."""
    known: dict[str, Experiment] = {}
    keys = []
    for key, ends in corners_by_key(experiment).items():
        labelled = {f"end {number}": one for number, one in enumerate(ends, len(known) + 1)}
        values = sweep_of(experiment).parameters[key]
        keys.append(SearchedKey(frozenset(labelled), len(values) if isinstance(values, list) else None))
        known |= labelled
    return known, tuple(keys)


def _finished(experiment: Experiment) -> tuple[dict[str, Experiment], list[str]]:
    """Return the trials that a search has finished, by label, and why a run would be refused or begin it again."""
    from rayreid.sweeps.optuna_search import finished, require_optuna

    try:
        require_optuna()
        combinations = finished(path_of(output_root(), experiment))
    except DamagedFileError as error:
        return {}, [f"{escaped(str(error))}; the search begins again"]
    except UserError as error:
        return {}, [f"rayreid run would refuse this: {error}"]
    return {describe(changes): trial(experiment, changes) for changes in combinations}, []
