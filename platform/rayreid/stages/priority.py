"""Stage *priority*: θs features → a priority per pool image, by likeness to the target or by clusters.

An artifact of its own, so that cutting at another fraction computes nothing anew.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from rayreid.config import Resources, Select
from rayreid.data.store.store import ImageStore
from rayreid.execution.production import StageContext, identity
from rayreid.execution.resources import training_share
from rayreid.parquet import write_table
from rayreid.selection.clusters import SAMPLE, cluster_count, even_priority, find_centres
from rayreid.selection.provenance import Provenance
from rayreid.selection.similarity import nearest
from rayreid.stages import features, score
from rayreid.storage.artifacts import Artifact

VERSION = 1


def plan(
    pool: Artifact,
    found: Artifact,
    targets: Mapping[str, tuple[Artifact, Artifact]],
    config: Select,
    seed: int,
    provenance: Provenance | None,
) -> Artifact:
    """Priorities of a pool by the strategy `target_similarity` or `cluster`.

    Args:
        pool: its image store.
        found: its θs features.
        targets: store and θs features of each target's training images, by name ("": the only one); for
            `target_similarity`.
        config: the strategy.
        seed: of the clusters and of the order within them; used by `cluster`.
        provenance: if given, used for judging only.
    """
    inputs = {"pool": pool, "features": found}
    fields: dict[str, Any] = {"strategy": config.strategy}
    if config.strategy == "cluster":
        fields |= identity(clusters=config.clusters, seed=seed)
    else:
        for name, (store, theirs) in targets.items():
            suffix = f".{name}" if name else ""
            inputs |= {f"target{suffix}": store, f"target_features{suffix}": theirs}
    return Artifact(pool.root, "priority", VERSION, fields, inputs, partial(_rank, config, seed, provenance))


def read_priority(folder: Path) -> pa.Table:
    """Columns `key` and `priority` (float64, NaN: could not be decoded), N rows in the store's order."""
    return pq.read_table(folder / "priority.parquet")


def _rank(config: Select, seed: int, provenance: Provenance | None, context: StageContext) -> dict[str, Any]:
    store = ImageStore(context.input("pool"))
    share = training_share(Resources())  # a GPU, or all CPUs of a node
    task = ray.remote(num_cpus=share.cpus, num_gpus=1 if share.gpu else 0)(_compute)
    folders = {role: context.input(role) for role in context.artifact.inputs}
    priority, facts = ray.get(task.remote(config, seed, folders, share.cpus))
    columns = {"key": store.keys_of(np.arange(len(store))), "priority": pa.array(priority)}
    write_table(context.folder / "priority.parquet", pa.table(columns))
    context.run.file(context.folder / "priority.parquet")
    judged = provenance.judge(store.keys, priority) if provenance else {}
    score.draw(context, store, priority, provenance, config.strategy)
    return {"images": len(priority), "bad": int(np.isnan(priority).sum()), **facts, **judged}


def _compute(config: Select, seed: int, folders: Mapping[str, Path], threads: int) -> tuple[np.ndarray, dict[str, int]]:
    """On a worker: the priority by index row, NaN where an image could not be decoded, and facts."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pool = ImageStore(folders["pool"])
    if config.strategy == "cluster":
        centres = _centres(pool, folders["features"], config, seed)
        _, clusters = _nearest(pool, folders["features"], centres, device)
        return even_priority(pool.keys, clusters, seed), {"clusters": len(centres)}
    references = [
        theirs[~np.isnan(theirs[:, 0])]
        for role in folders
        if role.partition(".")[0] == "target"
        for _, theirs in features.read(
            folders[role.replace("target", "target_features", 1)], ImageStore(folders[role]), "train"
        )
    ]
    cosines, _ = _nearest(pool, folders["features"], np.concatenate(references), device)
    return cosines, {"target_images": sum(map(len, references))}


def _centres(pool: ImageStore, folder: Path, config: Select, seed: int) -> np.ndarray:
    """Cluster centres, found on a sample of the pool; the same however the pool is dealt to shards."""
    every = list(features.read(folder, pool, "all"))
    usable = np.sort(np.concatenate([rows[~np.isnan(found[:, 0])] for rows, found in every]))
    count = cluster_count(len(usable), config.clusters)
    drawn = np.sort(np.random.default_rng(seed).permutation(usable)[: SAMPLE * count])
    sample = np.empty((len(drawn), every[0][1].shape[1]), np.float32)
    for rows, found in every:
        _, mine, places = np.intersect1d(rows, drawn, assume_unique=True, return_indices=True)
        sample[places] = found[mine]
    return find_centres(sample, count, seed)


def _nearest(
    pool: ImageStore, folder: Path, references: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Greatest cosine float64 (N,), NaN for undecodable images, and row of its reference (N,), −1 for those."""
    cosines = np.full(len(pool), np.nan)
    places = np.full(len(pool), -1, np.int64)
    others = torch.from_numpy(references.astype(np.float32)).to(device)
    for rows, found in features.read(folder, pool, "all"):
        usable = ~np.isnan(found[:, 0])
        best, place = nearest(torch.from_numpy(found[usable].astype(np.float32)).to(device), others)
        cosines[rows[usable]] = best.cpu().numpy()
        places[rows[usable]] = place.cpu().numpy()
    return cosines, places
