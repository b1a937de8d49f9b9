"""Commands on an experiment file: `run`, `sweep`, one per stage, and what goes with them."""

from collections.abc import Callable
from typing import Annotated

import typer

from rayreid.cli.options import Debug, File, Overrides

app = typer.Typer()

_STAGES = {
    "ingest": "Read a pool and a target into image stores.",
    "pretrain": "Pre-train the backbone on the pool or the selected part of it.",
    "score": "Compute the catastrophic-forgetting score of every pool image.",
    "select": "Cut the pool at a fraction by the strategy's priority.",
    "finetune": "Fine-tune the backbone on the labelled target.",
    "adapt": "Adapt the backbone to the target without its labels (USL, or UDA from a labelled source).",
    "evaluate": "Evaluate retrieval on the target's query and gallery: mAP, CMC, mINP.",
}


@app.command()
def run(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Run an experiment's stages in order, or a sweep where the file declares one; what is complete is skipped."""
    from rayreid.config.loading import load_experiment

    experiment = load_experiment(file, overrides or ())
    if experiment.sweep is not None:
        from rayreid.sweeps.sweep_runner import sweep as run_sweep

        run_sweep(experiment)
    else:
        from rayreid.pipeline.experiment_runner import run as run_experiment

        run_experiment(experiment)


@app.command()
def sweep(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Run the combinations of values under `sweep.parameters` with Ray Tune; shared stages run once."""
    from rayreid.config.loading import load_experiment
    from rayreid.sweeps.sweep_runner import sweep as run_sweep

    run_sweep(load_experiment(file, overrides or ()))


@app.command()
def config(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Print the experiment as it is resolved, with all defaults."""
    from rayreid.config.loading import dump, load_experiment

    typer.echo(dump(load_experiment(file, overrides or ())), nl=False)


def _stage_command(stage: str) -> Callable[..., None]:
    def command(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
        from rayreid.config.loading import load_experiment
        from rayreid.pipeline.experiment_runner import run_stage

        run_stage(load_experiment(file, overrides or ()), stage)

    return command


for _name, _help in _STAGES.items():
    app.command(_name, help=f"{_help} Runs whatever it needs first; skips what is complete.")(_stage_command(_name))


@app.command()
def selections(
    file: File,
    overrides: Overrides = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", metavar="NAME", help="Compare these, again and again; default: all but `list`."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare what strategies and rows choose from the pool: scores, overlap, sheets, origins, on one HTML page."""
    from rayreid.config.loading import load_experiment
    from rayreid.pipeline.selection_report import COMPARED, compare

    compare(load_experiment(file, overrides or ()), strategy or COMPARED)


@app.command()
def report(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Experiment file, or the name in it.")],
    overrides: Overrides = None,
    register: Annotated[
        bool, typer.Option("--register", help="Put the best model into MLflow's registry, loadable by mlflow.pytorch.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Report on a sweep, from MLflow alone: curves, stems, costs and published results on one HTML page, and PNGs."""
    from rayreid.reports.sweep_report import report as make_report

    make_report(sweep, overrides or ())
    if register:
        from rayreid.reports.model_registry import register_best

        register_best(sweep, overrides or ())
