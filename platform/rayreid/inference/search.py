"""Search of a gallery for the user's own query images, with the results as a figure and a table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

from rayreid.console import Screen
from rayreid.data.batch import ImageBatch
from rayreid.data.images import BadImageError
from rayreid.data.store.feature_file import FeatureTable
from rayreid.data.store.listed import ListedImages
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.canvas import PICTURES, save_picture
from rayreid.evaluation.retrieval_figures import ranked_lists
from rayreid.execution.connection import connect
from rayreid.inference.given_images import UNREADABLE, read_image
from rayreid.inference.named_inputs import ModelFile, find_model, open_images, output_file, place, rows_of
from rayreid.inference.predict import features_of
from rayreid.inference.ranked_gallery import Found, rank_gallery, read_gallery, refuse_empty
from rayreid.models.embedding import Embedder

DRAWN = 40
"""The most queries in one figure; the table has all of them."""
_UNKNOWN = -1


def search(
    queries: Sequence[str],
    gallery: str,
    model: str,
    k: int = 10,
    out: str = "search.png",
    images: str | None = None,
    dataset: str = "folder",
    split: str | None = None,
    strict: bool = True,
    screen: Screen | None = None,
) -> list[Found]:
    """Draw every query with the k gallery images most similar to it, and print their keys and similarities.

    Args:
        queries: Image files.
        gallery: An image store, a folder of images, or a feature file written by `predict`.
        model: A weights file in our format, an artifact's folder, or `stage/id`.
        k: Number of results per query.
        out: The image file to write.
        images: Folder of the gallery images, if `gallery` is a feature file and its images were moved.
        dataset: How to read a gallery that is a folder.
        split: Use only gallery images of this split.
        strict: Whether all tensors of the model must fit its network; else those that fit are loaded, and listed.
        screen: Prints the results.

    Returns:
        The results, in the order of the queries.

    Raises:
        UserError: An input does not exist, a query cannot be decoded, or the features are of another model.
    """
    screen = screen or Screen()
    path = output_file(out, "--out", PICTURES)
    network = find_model(model, strict)
    if not strict:
        screen.say(escape(str(network.report())))
    pictures = [_read(query) for query in queries]
    features = _embed(network, pictures)
    table, source = _gallery(gallery, network, images, dataset, split, screen)
    found, rows = rank_gallery([str(place(query)) for query in queries], features, table, k)
    _show(screen, found, len(table))
    _draw(
        path, pictures[:DRAWN], found[:DRAWN], [[_picture(source, table.keys[i]) for i in row] for row in rows[:DRAWN]]
    )
    screen.say(f"drawn: {escape(str(path))}" + (f" (the first {DRAWN} queries)" if len(found) > DRAWN else ""))
    return found


def _read(query: str) -> np.ndarray:
    try:
        return read_image(place(query))
    except BadImageError as error:
        told = str(error) if error.reason == UNREADABLE else f"cannot be decoded ({error})"
        raise UserError(f"query {query}: {told}") from None


def _embed(model: ModelFile, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return the features of the queries, (Q, D), computed in this process: a few images need no cluster."""
    embed = Embedder(model.weights, torch.device("cpu"), "fp32", strict=model.strict)
    return np.concatenate([embed(ImageBatch.collate([picture])).numpy() for picture in pictures])


def _gallery(
    gallery: str, model: ModelFile, images: str | None, dataset: str, split: str | None, screen: Screen
) -> tuple[FeatureTable, ImageStore | ListedImages]:
    """Return the features of the gallery, read or computed, and its images."""
    if not gallery.endswith(".parquet"):
        if images is not None:
            raise UserError("--images is only for a gallery of features; this gallery has its own images")
        source = open_images(gallery, dataset)
        rows = rows_of(source, split)
        refuse_empty(gallery, len(rows), split)
        with connect():
            table, rejected = features_of(source, rows, model, gallery, dataset, "auto", screen)
        if rejected:
            example = next(iter(rejected.items()))
            screen.say(f"{len(rejected):,} gallery images give no feature, e.g. {escape(': '.join(example))}")
        return table, source
    table = read_gallery(gallery, model, split)
    try:
        source = open_images(images or table.header["images"], table.header["dataset"] if images is None else dataset)
    except UserError as error:
        hint = "" if images else "; if they were moved, give their folder with --images"
        raise UserError(f"the images of {gallery} cannot be shown: {error}{hint}") from None
    return table, source


def _show(screen: Screen, found: Sequence[Found], gallery: int) -> None:
    labelled = any(pid != _UNKNOWN for one in found for pid in one.pids)
    for one in found:
        screen.say(f"[bold]{escape(Path(one.query).name)}[/] among {gallery:,} images")
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("rank", "similarity", *(("identity", "camera") if labelled else ())):
            table.add_column(name, justify="right")
        table.add_column("key", no_wrap=True)
        for rank, (key, score, pid, camid) in enumerate(
            zip(one.keys, one.scores, one.pids, one.camids, strict=True), start=1
        ):
            labels = (_known(pid), _known(camid)) if labelled else ()
            table.add_row(str(rank), f"{score:.3f}", *labels, escape(key))
        screen.console.print(table)


def _known(number: int) -> str:
    return "" if number == _UNKNOWN else str(number)


def _picture(source: ImageStore | ListedImages, key: str) -> np.ndarray:
    return source.image(int(source.rows_of_keys([key])[0]))


def _draw(
    path: Path, queries: Sequence[np.ndarray], found: Sequence[Found], results: Sequence[Sequence[np.ndarray]]
) -> None:
    names = [Path(one.query).name for one in found]
    save_picture(ranked_lists(queries, results, None, names, [one.scores for one in found]), path, "--out")
