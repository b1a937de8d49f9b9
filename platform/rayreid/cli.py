"""The command line: `rayreid run FILE`, one command per stage, and what goes with them."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from rayreid import __version__
from rayreid.errors import UserError

app = typer.Typer(
    help="Pre-training for person re-identification on Ray: which crops, which stem, and what it buys on your target.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[str, typer.Argument(metavar="FILE", help="Experiment file, e.g. experiments/demo.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, e.g. select.fraction=0.25", show_default=False),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

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
    from rayreid.experiment_file import load_experiment

    experiment = load_experiment(file, overrides or ())
    if experiment.sweep is not None:
        from rayreid.stages.sweep import sweep as run_sweep

        run_sweep(experiment)
    else:
        from rayreid.stages.experiment import run as run_experiment

        run_experiment(experiment)


@app.command()
def sweep(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Run every combination of the values under `sweep.parameters` with Ray Tune; shared stages run once."""
    from rayreid.experiment_file import load_experiment
    from rayreid.stages.sweep import sweep as run_sweep

    run_sweep(load_experiment(file, overrides or ()))


@app.command()
def config(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Print the experiment as it is resolved, with all defaults."""
    from rayreid.experiment_file import dump, load_experiment

    typer.echo(dump(load_experiment(file, overrides or ())), nl=False)


def _stage_command(stage: str) -> Callable[..., None]:
    def command(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
        from rayreid.experiment_file import load_experiment
        from rayreid.stages.experiment import run_stage

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
    from rayreid.experiment_file import load_experiment
    from rayreid.stages.selections import STRATEGIES, compare

    compare(load_experiment(file, overrides or ()), strategy or STRATEGIES)


@app.command("inspect")
def inspect_store(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of an image store, e.g. outputs/ingest/<id>.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare all shards with their checksums.")] = False,
    sheet: Annotated[
        str | None,
        typer.Option("--sheet", metavar="FILE", help="Draw a contact sheet of its images, e.g. sheet.png."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what an image store holds: images, rejects, splits, identities, sizes, shards."""
    from rayreid.stages.inspect_store import inspect_store as show

    show(store, verify=verify, sheet=sheet)


weights = typer.Typer(help="Look into weights files, and write them in other forms.", no_args_is_help=True)
app.add_typer(weights, name="weights", context_settings={"help_option_names": ["-h", "--help"]})

WeightsFile = Annotated[str, typer.Argument(metavar="FILE", help="Weights: ours, TransReID-SSL's, DINO's, timm's.")]
ImageSize = Annotated[
    tuple[int, int] | None,
    typer.Option(metavar="HEIGHT WIDTH", help="Pixels; a position embedding of another grid is resampled."),
]
Heads = Annotated[int | None, typer.Option(help="Attention heads, where file and width do not tell.")]
Channels = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="R G B", help="How images are normalised, where the file does not tell."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


@weights.command("inspect")
def inspect_weights(
    file: WeightsFile,
    keys: Annotated[bool, typer.Option("--keys", help="List every tensor with its shape.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a weights file holds: origin, architecture, stem, size, parameters, and whether all is understood."""
    from rayreid.stages.inspect_weights import inspect_weights as show

    show(file, keys)


@weights.command("convert")
def convert_weights(
    file: WeightsFile,
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="safetensors (rayreid's own), timm or transreid.")],
    output: Annotated[
        str | None, typer.Option(metavar="OUT", help="File to write; by default beside FILE, named after the form.")
    ] = None,
    img_size: ImageSize = None,
    num_heads: Heads = None,
    mean: Channels = None,
    std: Channels = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write a weights file in another form: every tensor of the backbone, or nothing."""
    from rayreid.stages.weights import convert_weights as convert

    convert(file, to, output, img_size, num_heads, mean, std, force)


@weights.command("export")
def export_weights(
    file: WeightsFile,
    onnx: Annotated[str, typer.Option("--onnx", metavar="OUT", help="ONNX file to write, e.g. backbone.onnx.")],
    img_size: ImageSize = None,
    num_heads: Heads = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write the backbone as an ONNX model, run it, and keep it only if it computes the same."""
    from rayreid.stages.weights import export_weights as export

    export(file, onnx, img_size, num_heads, force)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `rayreid` and of the jobs: errors the user can mend are one line, exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(arguments, standalone_mode=True)
    except Exception as error:
        # An error in a Ray task arrives wrapped, its text being the remote traceback.
        cause = getattr(error, "cause", None) or error
        if "--debug" in arguments or not isinstance(cause, UserError):
            raise
        print(f"rayreid: {cause}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
