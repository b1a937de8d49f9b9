"""Stage *score*: pool + θs + θt → catastrophic-forgetting score per image (Luo et al., arXiv 2111.12084, eq. 1–2).

With several targets the pool is read and decoded only once, and θs is computed only once; the score is the mean over
the targets. A sample of the pool is scored first and its features are kept, so that the stage can say what the scores
mean (`rayreid.selection.meaning`) before it scores the rest.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayreid.config import Auto, Score
from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.image_sheets import image_sheet
from rayreid.evaluation.score_figures import score_histogram
from rayreid.execution.production import StageContext, identity
from rayreid.execution.shard_results import ShardResults, fill
from rayreid.models.embedding import Embedder
from rayreid.models.weights import weights_of
from rayreid.parquet import encode_table, read_columns
from rayreid.selection.cfs import cfs, directions
from rayreid.selection.meaning import Separation
from rayreid.selection.provenance import Provenance
from rayreid.selection.registry import STRATEGIES
from rayreid.stages.score_meaning import facts_of, tell
from rayreid.stages.scored_sample import TARGET_IMAGES, SampleFiles, diagnosis, packed
from rayreid.state_files import reading, remake
from rayreid.storage.artifacts import Artifact
from rayreid.storage.roles import Role
from rayreid.training.loop import WantedPrecision

VERSION = 1
SHEET = 48
_KINDS = {"key": pa.types.is_string, "cfs": pa.types.is_floating}


def plan(
    pool: Artifact,
    source: Artifact,
    targets: Mapping[str, Artifact],
    config: Score,
    provenance: Provenance | None,
    stores: Mapping[str, Artifact] | None = None,
) -> Artifact:
    """Plan the scores of a pool under θs and the θt of one or several targets.

    Args:
        pool: Image store of the pool.
        source: The proxy θs.
        targets: The proxies θt by target name; the name "" means a single target, which needs no column of its own.
        config: The section `score`.
        provenance: Origins of the pool's images, used only to judge the scores; None: not known.
        stores: Image stores of the targets by name, as far as they are at hand; used only to judge the scores.
    """
    proxies: dict[str, Artifact] = {Role.of("target", name): proxy for name, proxy in targets.items()}
    inputs = {"pool": pool, "source": source, **proxies}
    auxiliary: dict[str, Artifact] = {Role.of(TARGET_IMAGES, name): store for name, store in (stores or {}).items()}
    job = partial(_score, config, provenance)
    return Artifact(pool.root, "score", VERSION, identity(score=config), inputs, job, auxiliary=auxiliary)


def read_scores(folder: Path) -> pa.Table:
    """Return all scores of an artifact, N rows, shard by shard.

    The columns are `key`, `cfs` (float32, NaN if an image cannot be decoded) and, for several targets, `cfs_<name>`.
    """
    with reading(folder / "scores" / "*", remake(folder)):
        paths = sorted((folder / "scores").glob("*.parquet"))
        columns = {name: _KINDS.get(name, pa.types.is_floating) for name in pq.read_schema(paths[0]).names}
        return pa.concat_tables([read_columns(path, {**columns, **_KINDS}, remedy=remake(folder)) for path in paths])


class _Head:
    """Scores of one decoded batch under all proxies; with `keep`, all that is kept of a sample (`packed`)."""

    def __init__(
        self,
        source: Path,
        targets: Mapping[str, Path],
        precision: WantedPrecision,
        compile: bool | Auto,
        device: torch.device,
        keep: bool = False,
    ):
        self.keep = keep
        self.source = Embedder(source, device, precision, compile)
        self.targets = {name: Embedder(path, device, precision, compile) for name, path in targets.items()}
        self.precision = self.source.precision

    def __call__(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        """Return the scores, float32 (B, targets), or the rows that `packed` returns."""
        images = images.to(self.source.device)
        source = self.source(images)
        targets = {f"target {name}".strip(): embed(images) for name, embed in self.targets.items()}
        each = [cfs(source, features, keys, ("source", name)) for name, features in targets.items()]
        scores = torch.stack(each, dim=1)
        if self.keep:
            units = [directions(features, keys, name) for name, features in targets.items()]
            scores = packed(scores, self.source.precision, images, directions(source, keys, "source"), units)
        return scores.cpu().numpy()


class ScoreFiles(ShardResults):
    """Parquet files of scores: `key`, `cfs_<name>` of each named target, and their mean `cfs`."""

    suffix = ".parquet"
    dtype = np.float32

    def __init__(self, folder: Path, store: ImageStore, names: Sequence[str]):
        self.names = names
        super().__init__(folder, store)

    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image's scores: one per target."""
        return (len(self.names),)

    def encode(self, rows: np.ndarray, values: np.ndarray) -> bytes:
        """Encode the columns, from scores (n, targets)."""
        columns: dict[str, Any] = {"key": self.store.keys_of(rows)}
        columns |= {f"cfs_{name}": pa.array(values[:, i]) for i, name in enumerate(self.names) if name}
        columns["cfs"] = pa.array(values.mean(axis=1, dtype=np.float64).astype(np.float32))
        return encode_table(pa.table(columns))

    def usable(self, path: Path) -> np.ndarray:
        """Return which images of a file have a score."""
        columns = {**_KINDS, **{f"cfs_{name}": pa.types.is_floating for name in self.names if name}}
        return ~np.isnan(read_columns(path, columns)["cfs"].to_numpy())

    def scores(self) -> np.ndarray:
        """Return the mean score by index row, float32 (N,); all files must be complete."""
        scores = np.full(len(self.store), np.nan, np.float32)
        for shard, rows in self.shards.items():
            scores[rows] = read_columns(self.path(shard), _KINDS, len(rows))["cfs"].to_numpy()
        return scores


def _score(config: Score, provenance: Provenance | None, context: StageContext) -> dict[str, Any]:
    store = ImageStore(context.input("pool"))
    context.run.dataset("pool", store.fingerprint, str(store.directory), {"images": len(store)}, "score")
    targets = {
        role.target: weights_of(context.input(role))
        for role in map(Role, context.artifact.inputs)
        if role.kind == "target"
    }
    files = ScoreFiles(context.folder / "scores", store, list(targets))
    head = partial(_Head, weights_of(context.input("source")), targets, config.precision, config.compile)
    sampled = SampleFiles(context.folder / "sample", files, len(targets))
    gpu_hours = fill(sampled, partial(head, keep=True), config, context, "scoring a sample")
    sample = sampled.sample()
    figures = told = None
    if sample:
        figures = diagnosis(sample, config, store, context)
        told = tell(context, figures, _judged(provenance, store, sample.scores, sample.rows))
    gpu_hours += fill(files, head, config, context, "scoring")
    scores = files.scores()
    usable = scores[np.isfinite(scores)]
    if not len(usable):
        raise UserError(f"{store.directory}: no image could be decoded; see {context.folder}")
    facts = {
        "images": len(scores),
        "bad": len(scores) - len(usable),
        "cfs_mean": float(usable.mean()),
        "cfs_std": float(usable.std()),
        "gpu_hours": gpu_hours,
    }
    separation = _judged(provenance, store, scores)
    known = facts_of(context.artifact, figures, tell(context, figures, separation, told)) if figures else {}
    draw(context, store, scores, provenance, "cfs")
    for path in sorted((context.folder / "scores").glob("*.parquet")):
        context.run.file(path, "scores")
    return {**facts, **({"auc": separation.auc} if separation else {}), **known}


def _judged(
    provenance: Provenance | None, store: ImageStore, scores: np.ndarray, rows: np.ndarray | None = None
) -> Separation | None:
    """Return how well scores separate the target's domain; `rows`: the images that they belong to (default: all)."""
    if provenance is None:
        return None
    return provenance.judge(store.keys if rows is None else store.keys[rows], scores)


def draw(
    context: StageContext, store: ImageStore, scores: np.ndarray, provenance: Provenance | None, name: str
) -> None:
    """Draw a histogram, and sheets of the highest, median and lowest images.

    Args:
        context: Where to log the figures.
        store: The pool.
        scores: The priorities by index row, NaN: none.
        provenance: If given, divides the histogram by origin.
        name: The strategy.
    """
    rows = np.flatnonzero(np.isfinite(scores))
    groups = provenance.groups(store.keys[rows]) if provenance else None
    histogram = score_histogram(scores[rows], groups=groups, label=STRATEGIES[name].label)
    context.run.figure(histogram, f"figures/{name}_histogram.png")
    for part, shown in extremes(scores, SHEET).items():
        titles = [f"{value:.3f}" for value in scores[shown]]
        context.run.figure(image_sheet([store.image(row) for row in shown], titles), f"figures/{name}_{part}.png")


def extremes(scores: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Return the index rows of the `count` highest, median and lowest scores, each descending (lowest: ascending)."""
    rows = np.flatnonzero(np.isfinite(scores))
    order = rows[np.argsort(-scores[rows], kind="stable")]
    middle = max(0, (len(order) - count) // 2)
    return {"highest": order[:count], "median": order[middle : middle + count], "lowest": order[::-1][:count]}
