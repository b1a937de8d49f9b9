"""Stage *places*: θs features → places and clusters of a sample of a pool's images, for the map of the pool."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rayreid.execution.production import StageContext
from rayreid.execution.resources import Share
from rayreid.parquet import Kind, read_columns, write_table
from rayreid.selection.pool_embedding import PoolEmbedding, embed_pool
from rayreid.stages.priority import features_in, on_a_worker
from rayreid.state_files import remake
from rayreid.storage.artifacts import Artifact

VERSION = 1
_TABLE = "places.parquet"


def plan(pool: Artifact, found: Artifact, images: int, seed: int) -> Artifact:
    """Plan the places of a pool's images on a map.

    Args:
        pool: The pool's image store.
        found: Its θs features.
        images: Maximum number of images on the map.
        seed: Seed of the sample, the places and the clusters.
    """
    fields = {"images": images, "seed": seed}
    return Artifact(
        pool.root, "places", VERSION, fields, {"pool": pool, "features": found}, partial(_place, images, seed)
    )


def read_places(folder: Path) -> PoolEmbedding:
    """Return the places in an artifact's folder.

    Raises:
        DamagedFileError: The table is missing, or holds something else.
    """
    floats = dict.fromkeys(("x", "y", "cosine"), pa.types.is_float32)
    columns: dict[str, Kind] = {"row": pa.types.is_int64, "cluster": pa.types.is_int64, **floats}
    table = read_columns(folder / _TABLE, columns, remedy=remake(folder))
    row, cluster, x, y, cosine = (table[name].to_numpy() for name in ("row", "cluster", "x", "y", "cosine"))
    return PoolEmbedding(row, np.stack([x, y], axis=1), cluster, cosine)


def _place(images: int, seed: int, context: StageContext) -> dict[str, Any]:
    found = on_a_worker(_embed, images, seed, context.input("features"), context.input("pool"), cpus_only=True)
    x, y = found.places.T
    columns = {"row": found.rows, "x": x, "y": y, "cluster": found.clusters, "cosine": found.cosines}
    write_table(context.folder / _TABLE, pa.table({name: pa.array(values) for name, values in columns.items()}))
    return {"images": len(found.rows), "clusters": int(found.clusters.max()) + 1}


def _embed(images: int, seed: int, folder: Path, store: Path, share: Share) -> PoolEmbedding:
    """Return the places, on a worker."""
    torch.set_num_threads(share.cpus)
    return embed_pool(features_in(folder, store, "all"), images, seed)
