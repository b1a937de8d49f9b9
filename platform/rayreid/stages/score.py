"""Stage *score*: pool + θs + θt → catastrophic-forgetting score per image (Luo et al., arXiv 2111.12084, eq. 1–2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayreid.artifacts import Artifact, write_atomically
from rayreid.config import Score
from rayreid.data.batch import ImageBatch
from rayreid.data.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.figures import image_sheet, score_histogram
from rayreid.selection.cfs import cfs
from rayreid.stages import finetune, pretrain
from rayreid.stages.inference import Embedder, stream
from rayreid.stages.production import Work, identity
from rayreid.stages.provenance import Provenance

VERSION = 1
_SHEET = 48


def plan(pool: Artifact, source: Artifact, target: Artifact, config: Score, provenance: Provenance | None) -> Artifact:
    """Scores of a pool under two proxies; `provenance`, if given, is used for judging them only."""
    inputs = {"pool": pool, "source": source, "target": target}
    job = partial(_score, config, provenance)
    return Artifact(pool.root, "score", VERSION, identity(score=config), inputs, job)


def read_scores(folder: Path) -> pa.Table:
    """All scores of an artifact: columns `key` and `cfs` (float32, NaN: could not be decoded), N rows."""
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / "scores").glob("*.parquet"))])


def auc_of(scores: Artifact, provenance: Provenance | None) -> float | None:
    """How well complete scores separate the target's own domain from the rest of the pool; None where it is not known.

    Judged from the stored scores, so that a provenance that was named or changed after the scoring counts: it is no
    part of the artifact's identity, and `auc` in its facts is what was known when it was made.
    """
    if provenance is None:
        return None
    keys, values = _columns(read_scores(scores.path))
    return provenance.judge(keys, values).get("auc")


def _columns(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    return np.array(table["key"].to_pylist(), dtype=object), table["cfs"].to_numpy()


@dataclass(frozen=True)
class _Head:
    """Both proxies on one decoded batch."""

    source: Embedder
    target: Embedder

    def __call__(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        return cfs(self.source(images), self.target(images), keys).cpu().numpy()


def _build(source: Path, target: Path, precision: str, device: torch.device) -> _Head:
    return _Head(Embedder(source, device, precision), Embedder(target, device, precision))


def _score(config: Score, provenance: Provenance | None, work: Work) -> dict[str, Any]:
    store = ImageStore(work.input("pool"))
    work.run.dataset("pool", store.fingerprint, str(store.directory), {"images": len(store)}, "score")
    shards = {int(shard): np.flatnonzero(store.shards == shard) for shard in np.unique(store.shards)}
    written = _Shards(work.folder / "scores", store, shards)
    source, target = work.input("source") / pretrain.WEIGHTS, work.input("target") / finetune.WEIGHTS
    build = partial(_build, source, target, config.precision)
    with work.screen.bar("scoring images", len(store)) as bar:
        bar.to(written.done)
        written.check(config.max_bad_fraction)
        for rows, values, broken in stream(store.directory, list(written.missing().values()), build, config.batch_size):
            written.add(rows, values, broken)
            written.check(config.max_bad_fraction)
            bar.to(written.done)
    keys, scores = _columns(read_scores(work.folder))
    usable = scores[np.isfinite(scores)]
    facts = {"images": len(keys), "bad": len(keys) - len(usable), "cfs_mean": float(usable.mean())}
    judged = provenance.judge(keys, scores) if provenance else {}
    _record(work, store, keys, scores, provenance)
    return {**facts, **judged}


class _Shards:
    """Score files, one per pool shard, each written once all its images have been through the proxies.

    Attributes:
        bad: images of which it is known that they cannot be decoded, those in an earlier process's files included.
        done: images that have been through the proxies, likewise.
    """

    def __init__(self, folder: Path, store: ImageStore, shards: Mapping[int, np.ndarray]):
        self.folder, self.store, self.shards = folder, store, shards
        folder.mkdir(exist_ok=True)
        self._values: dict[int, np.ndarray] = {}
        self._left: dict[int, int] = {}
        finished = [self._path(shard) for shard in shards if self._path(shard).exists()]
        scores = [pq.read_table(path, columns=["cfs"])["cfs"].to_numpy() for path in finished]
        self.bad = sum(int(np.isnan(values).sum()) for values in scores)
        self.done = sum(map(len, scores))
        self._list = folder.parent / "undecodable.tsv"
        self._listed = _listed(self._list)

    def missing(self) -> dict[int, np.ndarray]:
        """Rows of the shards that have no file yet."""
        return {shard: rows for shard, rows in self.shards.items() if not self._path(shard).exists()}

    def add(self, rows: np.ndarray, values: np.ndarray, broken: Mapping[int, str]) -> None:
        """Take in a result; of images that could not be decoded the score is NaN."""
        rows = np.concatenate([rows, np.fromiter(broken, np.int64)])
        values = np.concatenate([values, np.full(len(broken), np.nan, np.float32)])
        for shard in np.unique(self.store.shards[rows]):
            mine = self.store.shards[rows] == shard
            self._fill(int(shard), rows[mine], values[mine])
        self._tell({self.store.keys[row]: reason for row, reason in broken.items()})
        self.bad += len(broken)
        self.done += len(rows)

    def check(self, most: float) -> None:
        """Stop when too many images are broken."""
        if self.bad > most * len(self.store):
            raise UserError(
                f"{self.store.directory}: {self.bad} of {len(self.store)} images cannot be decoded, more than "
                f"score.max_bad_fraction={most}; see {self._list}"
            )

    def _tell(self, broken: Mapping[str, str]) -> None:
        """List images that cannot be decoded, each once: those of an unfinished shard come again after a restart."""
        new = {key: reason for key, reason in broken.items() if key not in self._listed}
        if new:
            with self._list.open("a", encoding="utf-8") as stream:
                stream.writelines(f"{key}\t{reason}\n" for key, reason in new.items())
            self._listed.update(new)

    def _fill(self, shard: int, rows: np.ndarray, values: np.ndarray) -> None:
        all_rows = self.shards[shard]
        if shard not in self._values:
            self._values[shard] = np.full(len(all_rows), np.nan, np.float32)
            self._left[shard] = len(all_rows)
        self._values[shard][np.searchsorted(all_rows, rows)] = values
        self._left[shard] -= len(rows)
        if self._left[shard] == 0:
            self._write(shard, self._values.pop(shard))

    def _write(self, shard: int, values: np.ndarray) -> None:
        keys = pa.array(self.store.keys[self.shards[shard]].tolist(), pa.string())
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"key": keys, "cfs": pa.array(values)}), sink)
        write_atomically(self._path(shard), sink.getvalue().to_pybytes())

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.parquet"


def _listed(path: Path) -> set[str]:
    """Keys in an interrupted process's list of images; a last line that it did not finish is taken off."""
    if not path.exists():
        return set()
    whole, end, torn = path.read_text(encoding="utf-8").rpartition("\n")
    if torn:
        write_atomically(path, whole + end)
    return {line.partition("\t")[0] for line in whole.split("\n")}


def _record(work: Work, store: ImageStore, keys: np.ndarray, scores: np.ndarray, provenance: Provenance | None) -> None:
    """Histogram, and sheets of the highest and lowest images."""
    usable = np.isfinite(scores)
    keys, scores = keys[usable], scores[usable]
    order = np.argsort(-scores, kind="stable")
    groups = provenance.groups(keys) if provenance else None
    work.run.figure(score_histogram(scores, groups=groups, label="CFS"), "figures/cfs_histogram.png")
    for name, part in (("highest", order[:_SHEET]), ("lowest", order[::-1][:_SHEET])):
        images = [store.image(row) for row in store.rows_of_keys(keys[part].tolist())]
        titles = [f"{value:.3f}" for value in scores[part]]
        work.run.figure(image_sheet(images, titles), f"figures/cfs_{name}.png")
    for path in sorted((work.folder / "scores").glob("*.parquet")):
        work.run.file(path, "scores")
