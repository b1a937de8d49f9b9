"""Features of any folder or store of images with a trained model, as one Parquet file."""

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
from rayreid.inference.named_inputs import Model, find_model, open_images, output_file, place, rows_of


def predict(
    model: str,
    images: str,
    out: str,
    dataset: str = "folder",
    split: str | None = None,
    batch_size: int | Auto = "auto",
    screen: Screen | None = None,
) -> Path:
    """Write the features of images, a row per image that can be decoded, by ascending key.

    Images that give no feature are listed in `<out>.undecodable.tsv` (key, reason) and counted.

    Args:
        model: a weights file of ours, an artifact's folder, or `stage/id`.
        images: an image store, or a folder.
        out: the Parquet file to write.
        dataset: how a folder that is no store is read: its images' keys, identities and cameras.
        split: only images of this split.
        batch_size: of a forward pass.
        screen: shows all that.

    Returns:
        The file.

    Raises:
        UserError: no such model, images, or place to write; not one image decodes; or features are not finite.
    """
    screen = screen or Screen()
    path = output_file(out, "--out", (".parquet",))
    network = find_model(model)
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
    model: Model,
    where: str,
    dataset: str,
    batch_size: int | Auto,
    screen: Screen,
) -> tuple[FeatureTable, dict[str, str]]:
    """A model's features of rows of images, and {key: reason} of what gives none; Ray is connected.

    Raises:
        UserError: as `extract`.
    """
    features, broken = extract(images, rows, model.weights, batch_size, screen)
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
    """What gave no feature, beside the features; nothing of an earlier prediction stays."""
    path.unlink(missing_ok=True)
    if rejected:
        lines = [f"{key}\t{' '.join(reason.split())}" for key, reason in sorted(rejected.items())]
        write_atomically(path, "\n".join(["key\treason", *lines]) + "\n")
        screen.say(f"{len(rejected):,} images without one, with the reason: {escape(str(path))}")
