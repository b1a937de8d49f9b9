"""Commands for weights files: `weights inspect | convert | export`."""

from typing import Annotated

import typer

from rayreid.cli.options import GROUP, Debug, Strict

app = typer.Typer(help="Inspect weights files, and convert them for other code.", **GROUP)

WeightsFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="Weights file of rayreid, TransReID-SSL, DINO, timm or another supported origin, or timm:NAME.",
    ),
]
ImageSize = Annotated[
    tuple[int, int] | None,
    typer.Option(
        metavar="HEIGHT WIDTH", help="Image size in pixels; a position embedding of another grid is resampled."
    ),
]
Heads = Annotated[
    int | None, typer.Option(help="Number of attention heads, if the file and the width do not determine it.")
]
Channels = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="R G B", help="Normalisation of images, if the file does not contain it."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


@app.command("inspect")
def inspect_weights(
    file: WeightsFile,
    keys: Annotated[bool, typer.Option("--keys", help="List every tensor with its shape.")] = False,
    debug: Debug = False,
) -> None:
    """Show the content of a weights file: origin, architecture, stem, size, parameters, whether all of it loads."""
    from rayreid.diagnostics.inspect_weights import inspect_weights as show

    show(file, keys)


@app.command("convert")
def convert_weights(
    file: WeightsFile,
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help="Form to write: safetensors (for rayreid), timm or transreid.")
    ],
    output: Annotated[
        str | None, typer.Option(metavar="OUT", help="File to write (default: beside FILE, named after the form).")
    ] = None,
    img_size: ImageSize = None,
    num_heads: Heads = None,
    mean: Channels = None,
    std: Channels = None,
    strict: Strict = True,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Convert a weights file to another form: all tensors of the backbone, or nothing."""
    from rayreid.diagnostics.convert_weights import convert_weights as convert

    convert(file, to, output, img_size, num_heads, mean, std, force, strict)


@app.command("export")
def export_weights(
    file: WeightsFile,
    onnx: Annotated[str, typer.Option("--onnx", metavar="OUT", help="ONNX file to write, e.g. backbone.onnx.")],
    img_size: ImageSize = None,
    num_heads: Heads = None,
    strict: Strict = True,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Export the backbone as an ONNX model, run it, and keep it only if it gives the same features."""
    from rayreid.diagnostics.convert_weights import export_weights as export

    export(file, onnx, img_size, num_heads, force, strict)
