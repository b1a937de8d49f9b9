"""Commands with a trained model: `predict`, `search`, `compare`, `matrix`."""

from typing import Annotated

import typer

from rayreid.cli.options import Debug, File, Overrides

app = typer.Typer()

_MODEL = "Weights file of rayreid, or an artifact that holds one: its folder, or e.g. finetune/<id>."
_Split = Annotated[str | None, typer.Option(metavar="NAME", help="Only images of this split, e.g. gallery.")]
_Dataset = Annotated[
    str, typer.Option(metavar="NAME", help="How a folder that is no image store is read: keys, identities, cameras.")
]


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)],
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="A folder of images, or an image store.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Parquet file to write.")] = "features.parquet",
    dataset: _Dataset = "folder",
    split: _Split = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Of a forward pass; by default what suits.")] = None,
    debug: Debug = False,
) -> None:
    """Compute the features of any folder of images or image store with a trained model."""
    from rayreid.inference.predict import predict as compute

    compute(model, images, out, dataset, split, batch_size or "auto")


@app.command()
def search(
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="Pictures of whom to look for.")],
    gallery: Annotated[
        str, typer.Option("--gallery", metavar="WHERE", help="Image store, folder, or features of `predict`.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help=_MODEL)],
    k: Annotated[int, typer.Option("-k", min=1, help="How many to show.")] = 10,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Picture to write.")] = "search.png",
    images: Annotated[
        str | None, typer.Option(metavar="WHERE", help="Where the images of a gallery of features lie now.")
    ] = None,
    dataset: _Dataset = "folder",
    split: _Split = None,
    debug: Debug = False,
) -> None:
    """Look for the people in some pictures in a gallery: draw the most similar images, print keys and similarities."""
    from rayreid.inference.search import search as look

    look(queries, gallery, model, k, out, images, dataset, split)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Artifact of evaluate: its folder, or evaluate/<id>.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The one that is judged against it.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Picture to write.")] = "compare.png",
    confidence: Annotated[float, typer.Option(help="Of the interval.")] = 0.95,
    extremes: Annotated[int, typer.Option(min=0, help="Queries to list that gained and lost most.")] = 5,
    debug: Debug = False,
) -> None:
    """Compare two evaluations query by query: is the difference of their mAP more than chance?"""
    from rayreid.inference.compare import compare as judge

    judge(first, second, out, confidence, extremes)


@app.command()
def matrix(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Evaluate every model (the file's rows, and weights files) on every target, in one table."""
    from rayreid.config.loading import load_experiment
    from rayreid.pipeline.matrix import matrix as evaluate

    evaluate(load_experiment(file, overrides or ()))
