"""The Python interface to experiments: the functions behind `rayreid run`, with results as tables of pandas."""

from pathlib import Path
from typing import TYPE_CHECKING

from rayreid.config import Experiment as Configuration
from rayreid.config.loading import dump, load_experiment
from rayreid.disk_faults import told_to_user
from rayreid.errors import UserError
from rayreid.paths import output_root

if TYPE_CHECKING:
    from rayreid.pipeline.forecast.forecast import Forecast
    from rayreid.pipeline.results import Results


def load(file: str | Path, *overrides: str) -> "Experiment":
    """Read an experiment file.

    Args:
        file: The YAML file, e.g. `experiments/demo.yaml`.
        overrides: Changes of keys, as on the command line: `"select.fraction=0.25"`.

    Raises:
        rayreid.UserError: The file is missing, a key is unknown, or a value has the wrong type or is out of range; or
            an override is not text.
    """
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(
                f"overrides: {type(override).__name__} is not text; give each as an argument of its own, e.g. "
                'load(file, "seed=1", "select.fraction=0.25"), and those of a list as *list'
            )
    with told_to_user():
        return Experiment(load_experiment(file, overrides))


class Experiment:
    """An experiment file: one experiment, rows to compare, or a sweep.

    Outputs go to `RAYREID_ROOT`, datasets are looked up under `RAYREID_DATA`, and Ray is that of `RAY_ADDRESS`, or one
    that is started for the call, as on the command line.

    Attributes:
        config: The resolved file. It is not changed; load the file with other overrides instead.
    """

    def __init__(self, config: Configuration):
        self.config = config

    def run(self, against: str | None = None) -> "Results":
        """Run all rows with all their seeds, or all trials of a sweep, as `rayreid run` does.

        Stages that are complete are skipped, and interrupted ones resume. Progress and the final table are printed.

        Args:
            against: Label of the row with which the others are compared query by query (default: the first, if the
                file has several seeds).

        Raises:
            rayreid.UserError: The user can fix the cause; the message is the one that the command prints.
        """
        with told_to_user(output_root):
            if self.config.sweep is not None:
                from rayreid.sweeps.sweep_runner import sweep

                _refuse_against(against)
                sweep(self.config)
            else:
                from rayreid.pipeline.experiment_runner import run

                run(self.config, against)
        return self.results(against)

    def plan(self, gpus: int | None = None, cpus: int | None = None) -> "Forecast":
        """Return what a run would reuse, resume or make, and what it would cost, as `rayreid plan` shows it.

        Nothing is started or written.

        Args:
            gpus, cpus: The machine to estimate for (default: this one).

        Returns:
            The plan: `to_make` has its artifacts with the reasons, `seconds` and `gpu_hours` are ranges.

        Raises:
            rayreid.UserError: No row or trial can be planned, or the machine cannot hold the workers.
        """
        with told_to_user(output_root):
            from rayreid.sweeps.sweep_forecast import forecast_of

            return forecast_of(self.config, gpus, cpus)

    def results(self, against: str | None = None) -> "Results":
        """Return the results that the output root has by now, without running anything and without Ray.

        Args:
            against: See `run`.

        Raises:
            rayreid.UserError: A row cannot be planned because a file that it names is missing, no row has the label
                `against`, or an artifact is damaged.
        """
        with told_to_user(output_root):
            from rayreid.pipeline.results import results_of

            if self.config.sweep is None:
                return results_of(self.config, against)
            from rayreid.sweeps.searched_trials import trials_so_far

            _refuse_against(against)
            return results_of(self.config, trials=trials_so_far(self.config, output_root()))

    def to_yaml(self) -> str:
        """Return the resolved experiment with all defaults, as `rayreid config` prints it."""
        return dump(self.config)

    def __repr__(self) -> str:
        return f"<rayreid.Experiment {self.config.name}>"


def _refuse_against(against: str | None) -> None:
    if against is not None:
        raise UserError(f"against={against}: a sweep has no rows; compare its trials with rayreid report")
