"""The map of the pool beside the page on selections: a sample of its images, placed by features, as one HTML file."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rayreid.data.store.store import ImageStore
from rayreid.errors import missing_extra
from rayreid.evaluation.canvas import PALETTE, group_colours
from rayreid.evaluation.cluster_sheets import cluster_sheets
from rayreid.evaluation.page import Page
from rayreid.evaluation.pool_map import Categories, ClusterTable, pool_map, require_plotly
from rayreid.evaluation.sprites import make_sprites, thumbnail_size
from rayreid.files import write_atomically
from rayreid.selection.pool_embedding import PoolEmbedding, require_umap
from rayreid.selection.provenance import Provenance

MOST_IMAGES = 50_000
"""Maximum number of images on a map: a browser draws as many fluently, and the file stays below about 60 MB."""
FILE = "selections_map.html"
NO_FEATURES = (
    "There is no map of the pool, because none of the compared selections needs a source proxy, whose features would "
    "place the images."
)
_DECODED = 256
"""Number of images that are decoded at once."""
_WITHOUT = "leave the map out with --no-map"


def check_map() -> None:
    """Check that what a map needs is installed.

    Raises:
        UserError: A package is missing; the message names the extra.
    """
    require_umap()
    require_plotly()
    if find_spec("faiss") is None:
        raise missing_extra("the map of the pool", "faiss", ["faiss-cpu"], _WITHOUT)


def write_map(
    path: Path,
    title: str,
    store: ImageStore,
    embedding: PoolEmbedding,
    source: str,
    priorities: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
    provenance: Provenance | None,
) -> None:
    """Write a map of a pool.

    Args:
        path: The file to write.
        title: Title of the page.
        store: The pool.
        embedding: The places of a sample of its images.
        source: The θs whose features placed them.
        priorities: Priority by index row, (N,), by label of the selection; NaN for none.
        kept: Index rows of the subset, by label of the selection; the same labels.
        provenance: Origins of the images; None: not known.

    Raises:
        UserError: A package is missing, or an image cannot be decoded.
    """
    rows = embedding.rows
    scores = {label: priority[rows] for label, priority in priorities.items()}
    chosen = {label: np.isin(rows, subset) for label, subset in kept.items()}
    columns: dict[str, np.ndarray | Categories] = {}
    for label, values in scores.items():
        columns[f"priority of {label}"] = values
        columns[f"subset of {label}"] = Categories(("kept", "dropped"), np.where(chosen[label], 0, 1), PALETTE[:2])
    if provenance:
        names, codes = np.unique(provenance.origins(store.keys[rows]), return_inverse=True)
        columns["origin"] = Categories(names.tolist(), codes, group_colours(len(names)))
    cluster = "cluster"
    columns[cluster] = Categories([str(i + 1) for i in range(embedding.clusters.max() + 1)], embedding.clusters)
    sheets = cluster_sheets(embedding.clusters, embedding.cosines, scores, chosen)
    html = pool_map(
        title,
        store.keys[rows].tolist(),
        embedding.places,
        columns,
        make_sprites(_images(store, rows), thumbnail_size(len(rows))),
        ClusterTable(cluster, list(scores), sheets),
        [
            f"{_shown(len(rows), len(store))} Images with similar features (of {source}) lie close "
            "together: neighbours on the map are alike, but distances between far groups mean little.",
        ],
    )
    write_atomically(path, html)


def add_link(page: Page, path: Path) -> None:
    """Add a link to a map that lies beside the page."""
    page.text(
        "A sample of the pool, placed by features: colour it by priority, subset, origin or cluster, point at a dot to "
        "see its image, and look through the clusters. The file needs no network."
    )
    page.link(f"{path.name} ({path.stat().st_size / 1e6:.0f} MB)", path.name)


def _shown(images: int, pool: int) -> str:
    if images == pool:
        return f"All {pool:,} images of the pool."
    return f"{images:,} of the {pool:,} images of the pool, drawn at random; the numbers below count these alone."


def _images(store: ImageStore, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _DECODED):
        yield from store.images(rows[start : start + _DECODED].tolist())
