"""Coordinates of a pool's images in the plane, in which images with similar features lie close together.

UMAP (McInnes et al., arXiv 1802.03426) from the library umap-learn. It starts from the two principal components and
from an exact neighbour search, and runs in one thread: the same features give the same map on the same machine.
"""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rayreid.errors import UserError, missing_extra
from rayreid.neighbours import knn
from rayreid.selection.clusters import SAMPLE, cluster_count, find_centres
from rayreid.selection.features import Features, take, usable_rows
from rayreid.selection.similarity import nearest

NEIGHBOURS = 15
"""Number of neighbours that UMAP keeps together, including the image itself; its own default."""
MIN_DISTANCE = 0.1
"""Smallest distance between images on the map; UMAP's own default."""
MOST_CLUSTERS = 48
"""Maximum number of clusters of a map: as many as a person can look through."""
_WIDTH = 10.0
"""Width of the initial coordinates; UMAP's own."""
_FEWEST = 5
"""Number of images below which the map shows the principal components, because UMAP needs neighbours."""
_WITHOUT = "leave the map out with --no-map"


@dataclass(frozen=True)
class PoolEmbedding:
    """Images of a pool on a map.

    Attributes:
        rows: Index rows int64 (n,), ascending.
        places: Coordinates float32 (n, 2), without a unit.
        clusters: Cluster of each image, int64 (n,), numbered from 0 by descending size.
        cosines: Cosine of each image to the centre of its cluster, float32 (n,).
    """

    rows: npt.NDArray[np.int64]
    places: npt.NDArray[np.float32]
    clusters: npt.NDArray[np.int64]
    cosines: npt.NDArray[np.float32]


def embed_pool(pool: Features, images: int, seed: int) -> PoolEmbedding:
    """Return coordinates and clusters of a uniform sample of a pool.

    Args:
        pool: Features of all images of the pool.
        images: Maximum number of images of the sample; those that could not be decoded are not drawn.
        seed: Seed of the sample, the clusters and the coordinates.

    Raises:
        UserError: umap-learn or faiss is missing, or no image of the pool could be decoded.
    """
    require_umap()
    rows = _sample(pool, images, seed)
    features = take(pool, rows).astype(np.float32)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)  # float16 has rounded them
    count = min(cluster_count(len(rows), "auto"), MOST_CLUSTERS)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(rows))[: SAMPLE * count])
    centres = find_centres(features[drawn], count, seed)
    cosines, clusters = (found.numpy() for found in nearest(torch.from_numpy(features), torch.from_numpy(centres)))
    return PoolEmbedding(rows, coordinates(features, seed), _by_size(clusters, count), cosines)


def coordinates(features: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float32]:
    """Return coordinates float32 (n, 2) of features (n, D), n ≥ 1, compared by cosine.

    Raises:
        UserError: umap-learn is missing, or a feature has no direction.
    """
    start = principal_components(features)
    if len(features) < _FEWEST:
        return start
    found = knn.nearest(features, NEIGHBOURS)
    distances = np.maximum(1 - found.similarities, 0).astype(np.float32)
    umap = require_umap().UMAP(
        n_neighbors=found.rows.shape[1],
        min_dist=MIN_DISTANCE,
        metric="cosine",
        init=start,
        random_state=seed % 2**31,
        n_jobs=1,
        precomputed_knn=(found.rows, distances),
        force_approximation_algorithm=True,  # otherwise it searches again if there are fewer than 4,096 images
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that new images cannot be placed without a search index
        return np.ascontiguousarray(umap.fit_transform(found.features), np.float32)


def principal_components(features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return the first two principal components of features (n, D), float32 (n, 2), the larger one scaled to ±10."""
    centred = features - features.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)  # in ascending order
    axes = vectors[:, :-3:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])  # eigenvectors have no sign
    places = np.zeros((len(features), 2))
    places[:, : axes.shape[1]] = centred @ axes
    return (places * (_WIDTH / max(float(np.abs(places).max()), 1e-12))).astype(np.float32)


def require_umap() -> Any:
    """Return the module umap.

    Raises:
        UserError: umap-learn is not installed or cannot be loaded.
    """
    if find_spec("umap") is None:
        raise missing_extra("the map of the pool", "map", ["umap-learn", "plotly"], _WITHOUT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # that its variant for TensorFlow is not available
            import umap
    except ImportError as error:
        raise UserError(f"umap-learn cannot be loaded ({error}): install it again, or {_WITHOUT}") from error
    return umap


def _sample(pool: Features, images: int, seed: int) -> npt.NDArray[np.int64]:
    """Return ascending index rows of a sample of a pool; it does not depend on the division into shards."""
    usable = usable_rows(pool)
    if not len(usable):
        raise UserError("no image of the pool has a feature: none could be decoded")
    return np.sort(np.random.default_rng(seed).permutation(usable)[:images])


def _by_size(clusters: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return clusters (n,) numbered by descending size; equal ones keep their order."""
    order = np.argsort(-np.bincount(clusters, minlength=count), kind="stable")
    return np.argsort(order)[clusters]
