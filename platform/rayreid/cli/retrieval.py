"""Commands for trained models: `predict`, `search`, `compare`, `matrix`, `publish`."""

from typing import Annotated

import typer

from rayreid.cli.options import Debug, File, Overrides, Strict, experiment_of
from rayreid.execution.standby import stand_by

app = typer.Typer()

_MODEL = "Weights file written by rayreid, or an artifact that contains one: its folder, or e.g. finetune/<id>."
_Split = Annotated[
    str | None, typer.Option(metavar="NAME", help="Use only the images of this split, e.g. gallery (default: all).")
]
_Dataset = Annotated[
    str, typer.Option(metavar="NAME", help="Kind of dataset as which a folder is read that is not an image store.")
]


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)],
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Folder of images, or image store.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Parquet file to write.")] = "features.parquet",
    dataset: _Dataset = "folder",
    split: _Split = None,
    strict: Strict = True,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Batch size of a forward pass (default: chosen automatically).")
    ] = None,
    debug: Debug = False,
) -> None:
    """Compute the features of a folder of images or an image store with a trained model."""
    stand_by()
    from rayreid.inference.predict import predict as compute

    compute(model, images, out, dataset, split, batch_size or "auto", strict)


@app.command()
def search(
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="Images of the persons to search for.")],
    gallery: Annotated[
        str, typer.Option("--gallery", metavar="WHERE", help="Image store, folder, or Parquet file of `predict`.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help=_MODEL)],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of gallery images to show per query.")] = 10,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Image file to write.")] = "search.png",
    images: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Folder or store with the images of the gallery, if it is a Parquet file and they have moved.",
        ),
    ] = None,
    dataset: _Dataset = "folder",
    split: _Split = None,
    strict: Strict = True,
    debug: Debug = False,
) -> None:
    """Search a gallery for the persons in some images: draw the most similar images, print keys and similarities."""
    stand_by()
    from rayreid.inference.search import search as look

    look(queries, gallery, model, k, out, images, dataset, split, strict)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Artifact of `evaluate`: its folder, or evaluate/<id>.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Artifact of `evaluate` to compare with A.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Image file to write.")] = "compare.png",
    confidence: Annotated[float, typer.Option(help="Confidence level of the interval.")] = 0.95,
    extremes: Annotated[
        int, typer.Option(min=0, help="Number of queries to list with the largest gains and losses.")
    ] = 5,
    debug: Debug = False,
) -> None:
    """Compare two evaluations query by query, with a confidence interval of their mAP difference."""
    from rayreid.inference.compare import compare as judge

    judge(first, second, out, confidence, extremes)


@app.command()
def matrix(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Evaluate every model (rows of the file, weights files) on every target, in one table."""
    experiment = experiment_of(file, overrides)
    stand_by()
    from rayreid.pipeline.matrix import matrix as evaluate

    evaluate(experiment)


@app.command()
def publish(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)],
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder to write; its name becomes the model's name.")
    ],
    license: Annotated[
        str,
        typer.Option(
            "--license",
            metavar="ID",
            help="Licence of the weights as model hubs name it, e.g. mit, apache-2.0, cc-by-nc-4.0, other.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model in its card (default: that of FOLDER).")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Whether to write an ONNX model, too.")] = True,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write into a folder that is not empty; files of an earlier publication go."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Publish a model as a folder for model hubs: weights, timm's config.json, ONNX, and a card as README.md."""
    from rayreid.publishing.publish import publish as write

    write(model, folder, license, name, onnx, force)
