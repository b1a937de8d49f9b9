"""Commands for an experiment file: `run`, `sweep`, one per stage, `config`, `selections`, `ledger`, `report`; for the
files that travel with the package: `demo`, `init`; and their `schema`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from rayreid.cli.options import Debug, File, Overrides, experiment_of
from rayreid.cli.plans import show_plan
from rayreid.execution.standby import stand_by

if TYPE_CHECKING:
    from rayreid.config import Experiment

app = typer.Typer()

_STAGES = {
    "ingest": "Read the pool and the target into image stores.",
    "pretrain": "Pre-train the backbone on the pool or on its selected subset.",
    "score": "Compute the catastrophic-forgetting score of every pool image.",
    "select": "Select the subset of the pool with the highest priority.",
    "finetune": "Fine-tune the backbone on the labelled target.",
    "adapt": "Adapt the backbone to the target without using its labels (USL, or UDA from a labelled source).",
    "evaluate": "Evaluate retrieval on the query and gallery of the target: mAP, CMC, mINP.",
}


@app.command()
def run(
    file: File,
    overrides: Overrides = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="LABEL",
            help="Row to compare the others with, query by query (default: the first, if the file has several seeds).",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be made and what it would cost, as `rayreid plan`.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run all rows of an experiment, or its sweep if the file has one; skip complete stages."""
    experiment = experiment_of(file, overrides)
    _check_against(experiment, against, file)
    if dry_run:
        show_plan(experiment)
        return
    stand_by()
    if experiment.sweep is not None:
        from rayreid.sweeps.sweep_runner import sweep as run_sweep

        run_sweep(experiment)
    else:
        from rayreid.pipeline.experiment_runner import run as run_experiment

        run_experiment(experiment, against)


def _check_against(experiment: "Experiment", against: str | None, file: str) -> None:
    """Refuse a baseline that is no row of an experiment, also where nothing runs."""
    if against is None:
        return
    from rayreid.config.loading import row_labels
    from rayreid.errors import UserError
    from rayreid.pipeline.seed_groups import baseline_of

    if experiment.sweep is not None:
        raise UserError(f"--against {against}: a sweep has no rows; compare its trials with rayreid report {file}")
    baseline_of(row_labels(experiment).values(), against)


@app.command()
def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Overrides of keys of demo.yaml, e.g. seed=1", show_default=False
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            metavar="FOLDER",
            help="Folder for the outputs (default: RAYREID_ROOT, or else outputs/ in the current folder).",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the whole method on synthetic pedestrians: no dataset, no GPU; minutes on two cores."""
    from rayreid.paths import use_output_root
    from rayreid.pipeline.shipped import experiment_files

    if root is not None:
        use_output_root(root)
    run(str(experiment_files() / "demo.yaml"), overrides)


@app.command()
def init(
    folder: Annotated[str, typer.Argument(metavar="[FOLDER]", help="Folder to copy to.")] = "experiments",
    debug: Debug = False,
) -> None:
    """Copy the experiment files of this version into a folder, to extend them; no file is overwritten."""
    from rayreid.pipeline.shipped import copy_experiment_files

    typer.echo(f"{folder}: {len(copy_experiment_files(folder))} files written")


@app.command()
def sweep(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Run the combinations of values under `sweep.parameters` with Ray Tune; shared stages run only once."""
    experiment = experiment_of(file, overrides)
    stand_by()
    from rayreid.sweeps.sweep_runner import sweep as run_sweep

    run_sweep(experiment)


@app.command()
def config(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Print the resolved experiment with all defaults."""
    from rayreid.config.loading import dump

    typer.echo(dump(experiment_of(file, overrides)), nl=False)


@app.command()
def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of experiment files, with which editors complete and check keys."""
    import json

    from rayreid.config.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _stage_command(stage: str) -> Callable[..., None]:
    def command(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
        experiment = experiment_of(file, overrides)
        stand_by()
        from rayreid.pipeline.experiment_runner import run_stage

        run_stage(experiment, stage)

    return command


for _name, _help in _STAGES.items():
    app.command(_name, help=f"{_help} Runs missing earlier stages first, and skips complete ones.")(
        _stage_command(_name)
    )


@app.command()
def selections(
    file: File,
    overrides: Overrides = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            metavar="NAME",
            help="Strategy to compare; may be repeated (default: all except `list` and `combine`).",
        ),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            metavar="FORMAT",
            help="Also write the kept images of each selection: csv, parquet, txt (keys by priority) or webdataset.",
        ),
    ] = None,
    export_to: Annotated[
        str | None,
        typer.Option(
            "--export-to",
            metavar="FOLDER",
            help="New or empty folder for --export (default: kept-FORMAT beside the page).",
        ),
    ] = None,
    proxy_steps: Annotated[
        int | None,
        typer.Option(
            "--proxy-steps",
            metavar="N",
            help="Also pre-train N steps on each selection at each fraction, and on the whole pool, and probe.",
        ),
    ] = None,
    with_map: Annotated[
        bool, typer.Option("--map/--no-map", help="Also write a map of the pool; needs the extra `map`.")
    ] = True,
    map_images: Annotated[
        int,
        typer.Option("--map-images", metavar="N", min=10, max=50_000, help="Maximum number of images on the map."),
    ] = 50_000,
    debug: Debug = False,
) -> None:
    """Compare which pool images strategies and rows select, before anything is trained on them, on one HTML page:
    origins, coverage of the target, diversity, near-duplicates, overlap, samples; and hand the kept images on."""
    experiment = experiment_of(file, overrides)
    stand_by()
    from rayreid.pipeline.selection_report import COMPARED, compare

    map_size = map_images if with_map else None
    compare(experiment, strategy or COMPARED, map_size, export, export_to, proxy_steps)


@app.command()
def ledger(
    file: File,
    overrides: Overrides = None,
    to: Annotated[
        str, typer.Option("--to", metavar="FILE.csv", help="CSV file to append to; it is created if it does not exist.")
    ] = "docs/results/ledger.csv",
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Text for the last column of new lines.")] = "",
    machine: Annotated[
        str, typer.Option("--machine", metavar="TEXT", help="Machine of artifacts that do not record theirs.")
    ] = "",
    debug: Debug = False,
) -> None:
    """Append the finished rows of an experiment to a CSV file, one line per row and seed; lines that are there stay."""
    from rayreid.pipeline.ledger import enter

    entered = enter(experiment_of(file, overrides), to, note, machine)
    typer.echo(
        f"{entered.path}: {entered.added} added, {entered.known} already there, {entered.unfinished} not finished"
    )
    for row in entered.unknown:
        typer.echo(f"not looked up: {row}")


@app.command()
def report(
    sweep: Annotated[
        str, typer.Argument(metavar="SWEEP", help="Experiment file, or the name of an experiment (its newest run).")
    ],
    overrides: Overrides = None,
    register: Annotated[
        bool, typer.Option("--register", help="Register the best model in MLflow's model registry, for mlflow.pytorch.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Summarise a sweep from MLflow alone: curves, stems, costs and published results on one HTML page, and as PNGs."""
    from rayreid.reports.sweep_report import report as make_report

    make_report(sweep, overrides or ())
    if register:
        from rayreid.reports.model_registry import register_best

        register_best(sweep, overrides or ())
