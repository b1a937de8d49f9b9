"""Features of any image folder or image store, computed with a trained model and written as one Parquet file."""

from pathlib import Path

import numpy as np
from rich.markup import escape

from rayreid.config import Auto
from rayreid.console import Screen
from rayreid.data.store.feature_file import FeatureTable, write_features
from rayreid.data.store.listed import ListedImages
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.execution.connection import connect
from rayreid.execution.feature_extraction import extract
from rayreid.files import write_atomically
from rayreid.inference.named_inputs import ModelFile, find_model, open_images, output_file, place, rows_of


def predict(
    model: str,
    images: str,
    out: str,
    dataset: str = "folder",
    split: str | None = None,
    batch_size: int | Auto = "auto",
    strict: bool = True,
    screen: Screen | None = None,
) -> Path:
    """Write the features of images, one row per image that can be decoded, by ascending key.

    Images without a feature are counted, and listed in `<out>.undecodable.tsv` (key, reason).

    Args:
        model: A weights file in our format, an artifact's folder, or `stage/id`.
        images: An image store, or a folder.
        out: The Parquet file to write.
        dataset: How to read a folder that is not a store: the keys, identities and cameras of its images.
        split: Use only images of this split.
        batch_size: Batch size of a forward pass.
        strict: Whether all tensors of the model must fit its network; else those that fit are loaded, and listed.
        screen: Shows the progress and the result.

    Returns:
        The path of the Parquet file.

    Raises:
        UserError: The model, the images or the output folder does not exist, no image can be decoded, or a feature
            is not finite.
    """
    screen = screen or Screen()
    path = output_file(out, "--out", (".parquet",))
    network = find_model(model, strict)
    if not strict:
        screen.say(escape(str(network.report())))
    found = open_images(images, dataset)
    rows = rows_of(found, split)
    if not len(rows):
        raise UserError(f"{images} has no image of split {split!r}; it has {', '.join(sorted(set(found.splits)))}")
    with connect():
        table, rejected = features_of(found, rows, network, images, dataset, batch_size, screen)
    write_features(path, table)
    screen.say(f"{len(table):,} features of {table.features.shape[1]} dimensions: {escape(str(path))}")
    _list(path.with_suffix(".undecodable.tsv"), rejected, screen)
    return path


def features_of(
    images: ImageStore | ListedImages,
    rows: np.ndarray,
    model: ModelFile,
    where: str,
    dataset: str,
    batch_size: int | Auto,
    screen: Screen,
) -> tuple[FeatureTable, dict[str, str]]:
    """Return a model's features of some images, and {key: reason} of the images without one. Ray must be connected.

    Args:
        images: The images.
        rows: Index rows of the images to use, int (N,).
        model: The model.
        where: The path of the images as the user gave it, for the header of the table.
        dataset: The name of the dataset, for the header of the table.
        batch_size: Batch size of a forward pass.
        screen: Shows the progress.

    Raises:
        UserError: As for `extract`.
    """
    features, broken = extract(images, rows, model.weights, batch_size, screen, model.strict)
    whole = ~np.isin(rows, list(broken))
    kept = rows[whole]
    if isinstance(images, ImageStore):
        source, rejected = {"images": str(images.directory), "dataset": images.manifest["dataset"]}, {}
    else:
        source, rejected = {"images": str(place(where)), "dataset": dataset}, images.rejected
    header = {"weights": model.checksum, "model": str(model.weights), **source}
    table = FeatureTable(
        images.keys[kept], features[whole], images.pids[kept], images.camids[kept], images.splits[kept], header
    )
    return table, rejected | {images.keys[row]: reason for row, reason in broken.items()}


def _list(path: Path, rejected: dict[str, str], screen: Screen) -> None:
    """List the images without a feature next to the features; a list of an earlier prediction is removed."""
    path.unlink(missing_ok=True)
    if rejected:
        lines = [f"{key}\t{' '.join(reason.split())}" for key, reason in sorted(rejected.items())]
        write_atomically(path, "\n".join(["key\treason", *lines]) + "\n")
        screen.say(f"{len(rejected):,} images without a feature, with the reason: {escape(str(path))}")
