"""Stage *select*: a strategy's priority per image, cut at a fraction → subset."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayreid.artifacts import Artifact, data_path, write_atomically
from rayreid.config import Select
from rayreid.data.shards import checksum
from rayreid.data.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.figures import score_histogram
from rayreid.selection.filelist import match_entries, read_list
from rayreid.selection.strategies import cut, priority
from rayreid.stages import score
from rayreid.stages.production import Work, identity
from rayreid.stages.provenance import Provenance

VERSION = 1


def plan(pool: Artifact, scores: Artifact | None, config: Select, seed: int, provenance: Provenance | None) -> Artifact:
    """A subset of the pool; `scores` is needed by the strategy `cfs` only, `seed` used by `random` only."""
    fields = identity(select=config)
    inputs = {"pool": pool}
    if config.strategy == "cfs":
        if scores is None:
            raise ValueError("the strategy cfs needs scores")
        inputs["scores"] = scores
    elif config.strategy == "random":
        fields["seed"] = seed
    elif config.strategy == "list":
        fields["list"] = checksum(list_file(config))
    job = partial(_select, config, seed, provenance)
    return Artifact(pool.root, "select", VERSION, fields, inputs, job)


def subset_rows(store: ImageStore, folder: Path) -> np.ndarray:
    """Index rows of a subset's images, int64 ascending."""
    return np.sort(store.rows_of_keys(pq.read_table(folder / "subset.parquet")["key"].to_pylist()))


def list_file(config: Select) -> Path:
    """The file list that the strategy `list` follows.

    Raises:
        UserError: none is named, or there is no such file.
    """
    if config.list is None:
        raise UserError("select.strategy is list: name the file with select.list")
    path = data_path(config.list)
    if not path.is_file():
        raise UserError(f"{path}: no such file (select.list)")
    return path


def _select(config: Select, seed: int, provenance: Provenance | None, work: Work) -> dict[str, Any]:
    store = ImageStore(work.input("pool"))
    ranking = _priority(config, seed, store, work)
    chosen = cut(store.keys, ranking, fraction=None if config.count else config.fraction, count=config.count)
    keys = store.keys[chosen]
    sink = pa.BufferOutputStream()
    table = pa.table({"key": pa.array(keys.tolist(), pa.string()), "priority": pa.array(ranking[chosen])})
    pq.write_table(table, sink)
    write_atomically(work.folder / "subset.parquet", sink.getvalue().to_pybytes())
    work.run.file(work.folder / "subset.parquet")
    facts: dict[str, Any] = {"images": len(keys), "of": len(store), "cut": float(ranking[chosen].min())}
    if config.strategy == "cfs":
        _draw(work, store.keys, ranking, facts["cut"], provenance)
    return {**facts, **(provenance.shares(keys) if provenance else {})}


def _priority(config: Select, seed: int, store: ImageStore, work: Work) -> np.ndarray:
    """Priority per index row, NaN: never selected."""
    scores = score.read_scores(work.input("scores")) if "scores" in work.artifact.inputs else None
    match = None
    if config.strategy == "list":
        match = match_entries(read_list(list_file(config)), store.keys)
        work.screen.say(f"    {match.matched} of {match.entries} entries of the list are in the pool")
    return priority(config.strategy, store.keys, seed=seed, scores=scores, match=match)


def _draw(work: Work, keys: np.ndarray, scores: np.ndarray, lowest: float, provenance: Provenance | None) -> None:
    """Histogram of the scores, with the cut."""
    scored = np.isfinite(scores)
    groups = provenance.groups(keys[scored]) if provenance else None
    figure = score_histogram(scores[scored], cut=lowest, groups=groups, label="CFS")
    work.run.figure(figure, "figures/cfs_histogram.png")
