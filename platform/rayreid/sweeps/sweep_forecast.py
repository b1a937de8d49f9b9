"""The forecast of any experiment file: one experiment, its rows, or the trials of its sweep."""

from dataclasses import replace

from rayreid.config import Experiment
from rayreid.config.loading import rows
from rayreid.paths import output_root
from rayreid.pipeline.forecast.forecast import Forecast
from rayreid.pipeline.forecast.forecasting import forecast
from rayreid.pipeline.forecast.planned_machine import PlannedMachine, machine_here
from rayreid.sweeps.trials import corners, sweep_of, trials

_SEARCH = (
    "the trials of a search are chosen while it runs: these are the ends of its ranges, and their mean cost stands for "
    "each of the {trials} trials"
)
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
    searched = sweep.search == "optuna"
    known = {f"end {number}": one for number, one in enumerate(corners(experiment), 1)}
    found = forecast(known if searched else trials(experiment), experiment, root, machine, "sweep", places)
    notes = found.notes
    if searched:
        notes += (_SEARCH.format(trials=sweep.trials),)
    if sweep.stop_below_median is not None:
        notes += (_STOPPING,)
    return replace(found, notes=notes, trials=sweep.trials or 0 if searched else len(found.labels))
