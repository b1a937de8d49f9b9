"""Commands on weights files: `weights inspect | convert | export`."""

from typing import Annotated

import typer

from rayreid.cli.options import GROUP, Debug

app = typer.Typer(help="Look into weights files, and write them in other forms.", **GROUP)

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


@app.command("inspect")
def inspect_weights(
    file: WeightsFile,
    keys: Annotated[bool, typer.Option("--keys", help="List every tensor with its shape.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a weights file holds: origin, architecture, stem, size, parameters, and whether all is understood."""
    from rayreid.diagnostics.inspect_weights import inspect_weights as show

    show(file, keys)


@app.command("convert")
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
    from rayreid.diagnostics.convert_weights import convert_weights as convert

    convert(file, to, output, img_size, num_heads, mean, std, force)


@app.command("export")
def export_weights(
    file: WeightsFile,
    onnx: Annotated[str, typer.Option("--onnx", metavar="OUT", help="ONNX file to write, e.g. backbone.onnx.")],
    img_size: ImageSize = None,
    num_heads: Heads = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write the backbone as an ONNX model, run it, and keep it only if it computes the same."""
    from rayreid.diagnostics.convert_weights import export_weights as export

    export(file, onnx, img_size, num_heads, force)
