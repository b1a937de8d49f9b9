"""A pool and a target with features of θs, made without a cluster of machines."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rayreid.config import Score
from rayreid.console import Screen
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.execution import shard_results
from rayreid.execution.production import StageContext
from rayreid.execution.resources import Share
from rayreid.selection.pieces import HERE
from rayreid.stages import features, priority
from rayreid.storage.artifacts import Artifact
from recorded_run import RecordedRun

IMAGES, DIMENSIONS = 60, 8


def work_on(artifact: Artifact, said: io.StringIO | None = None) -> Artifact:
    """Do an artifact's job here; what it says is written to `said`."""
    artifact.path.mkdir(parents=True, exist_ok=True)
    facts = artifact.job(
        StageContext(artifact, artifact.path, RecordedRun(), Screen(Console(file=said or io.StringIO(), width=1000)))
    )
    artifact.finish(facts)
    return artifact


def stored(root, name: str, split: str, shards: int) -> Artifact:
    artifact = Artifact(root, "ingest", 1, {"name": name, "shards": shards})
    artifact.path.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 16)).save(buffer, "JPEG")
    # Neighbours in the index stand in different shards.
    for shard in range(shards):
        numbers = range(shard, IMAGES, shards)
        records = [Record(f"{name}{n:02d}.jpg", n if split == "train" else -1, -1, split, "") for n in numbers]
        write_shard(artifact.path, shard, records, lambda record: buffer.getvalue())
    finish_store(artifact.path, shards, name, "")
    artifact.finish({})
    return artifact


def directions(rows: np.ndarray, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((IMAGES, DIMENSIONS))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True))[rows].astype(np.float16)


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A pool of some shards and a target with their features; image 7 of each cannot be decoded."""

    def stream(store, rows, build, batch_size):
        seed = int(ImageStore(store).keys[0].startswith("t"))
        for piece in rows:
            good = piece[piece != 7]
            yield good, directions(good, seed), {7: "truncated"} if 7 in piece else {}

    monkeypatch.setattr(shard_results, "scoring_actors", lambda: Share(4, 1, True))
    monkeypatch.setattr(shard_results, "stream", stream)
    proxy = Artifact(tmp_path, "proxy", 1, {})
    proxy.path.mkdir(parents=True)
    (proxy.path / "backbone.safetensors").write_bytes(b"theta")
    config = Score(max_bad_fraction=0.1)

    def known(shards: int):
        pool, target = stored(tmp_path, "p", "pool", shards), stored(tmp_path, f"t{shards}", "train", 1)
        found = work_on(features.plan(pool, proxy, "all", config))
        theirs = work_on(features.plan(target, proxy, "train", config))
        return SimpleNamespace(pool=pool, target=target, found=found, theirs=theirs, proxy=proxy)

    return known


@pytest.fixture
def worked_here(monkeypatch):
    """Let tasks of Ray run in this process."""
    task = SimpleNamespace(remote=lambda compute: SimpleNamespace(remote=compute))
    monkeypatch.setattr(priority, "ray", SimpleNamespace(remote=lambda **kw: task.remote, get=lambda value: value))
    monkeypatch.setattr(priority, "pieces_in_tasks", lambda: HERE)
    monkeypatch.setattr(priority, "training_share", lambda resources: Share(1, 1, False))
