"""The stages that `crash_points` disturbs, without Ray: what lies on the disk before, and the artifact to make."""

import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import in_process
from rayreid.config import Backbone, Finetune, Ingest, Resources, Score, Source
from rayreid.console import Screen
from rayreid.data.datasets import open_dataset
from rayreid.data.store import listing
from rayreid.data.store.index import finish_store
from rayreid.data.store.shards import Record, write_shard
from rayreid.execution import delivery, production, shard_results, trainer
from rayreid.execution.production import produce
from rayreid.execution.resources import Share
from rayreid.files import write_atomically
from rayreid.stages import finetune, ingest, quality, score
from rayreid.storage import lease, metrics_log
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import RECORD
from rayreid.storage.lease_place import LeasePlace
from rayreid.training import feed, loop, meter
from recorded_run import RecordedRun


@dataclass(frozen=True)
class Scenario:
    """A stage to disturb.

    Attributes:
        artifact: Function (root) → the artifact to make.
        prepare: Makes what lies in the root before.
        setting: Context in which it runs without Ray.
    """

    artifact: Callable[[Path], Artifact]
    prepare: Callable[[Path], None]
    setting: Callable[[pytest.MonkeyPatch, Path], None]


def settle_clocks(patch: pytest.MonkeyPatch) -> None:
    """Have leases decide soon, and nothing happen at a time that is not the same in every run."""
    patch.setattr(lease, "_STALE_SECONDS", 0.2)
    patch.setattr(lease, "_CONFIRM_SECONDS", 0.05)
    patch.setattr(logging.getLogger("rayreid"), "disabled", True)
    for clock in (metrics_log, meter, loop, feed, shard_results):
        patch.setattr(clock, "time", SimpleNamespace(time=lambda: 1.0, monotonic=lambda: 0.0))
    patch.setattr(
        production,
        "datetime",
        SimpleNamespace(now=lambda zone: datetime(2000, 1, 1, tzinfo=zone), strptime=datetime.strptime),
    )
    patch.setattr(production, "git_sha", lambda: "0" * 40)
    patch.setattr(production, "time", SimpleNamespace(monotonic=lambda: 0.0))
    patch.setattr(LeasePlace, "sleep", lambda self, seconds: time.sleep(min(seconds, 0.01)))


def _drawn(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write_images(folder: Path, first: int = 0) -> Path:
    """Write eight images, of which one cannot be decoded."""
    for number in range(8):
        path = folder / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_drawn(number + first)[: -40 if number == 3 else None])
        os.utime(path, ns=(first * 10**9, 10**18 + first * 10**9))
    return folder


class _Ray:
    """In place of Ray: tasks run in this process, when they are submitted."""

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        return lambda function: SimpleNamespace(remote=lambda *given: _Done(function(*given)))

    def put(self, value: Any) -> Any:
        return value

    def get(self, done: Any) -> Any:
        return [one.value for one in done] if isinstance(done, list) else done.value

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references, []

    def cancel(self, reference: Any) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1}


@dataclass(frozen=True, eq=False)
class _Done:
    """In place of a reference to what a task returns."""

    value: Any


class _Ingesting:
    """The stage ingest, of a folder of eight images in three shards."""

    def __init__(self) -> None:
        self.images = Path()

    def setting(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        patch.setattr(ingest, "ray", _Ray())
        patch.setattr(ingest, "image_sheet", lambda images: None)
        patch.setattr(listing, "SHARD_IMAGES", 3)
        patch.setattr(listing, "LEAST_IMAGES", 3)
        self.images = _write_images(folder / "images")

    def artifact(self, root: Path) -> Artifact:
        return ingest.plan(root, Source(dataset="folder", root=str(self.images)), Ingest(max_rejected=0.5))

    def nothing(self, root: Path) -> None:
        pass

    def of_files_that_changed(self, root: Path) -> None:
        """Leave an ingest that was killed before it joined the shards; then the images are replaced."""
        whole = made(self.artifact(root))
        for name in (RECORD, "manifest.json", "index.parquet", "rejected.parquet"):
            (whole.path / name).unlink()
        _write_images(self.images, first=100)

    def damaged(self, root: Path) -> None:
        """Leave a complete store of which a disk has lost the end of two files."""
        whole = made(self.artifact(root))
        for name in ("shards/00001.arrow", "manifest.json"):
            os.truncate(whole.path / name, 100)


class _Training:
    """The stage finetune: two epochs with validation, checkpoints, milestones and weights."""

    epochs = 2

    def setting(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        in_process.train_here(patch)
        patch.setattr(trainer, "loss_curves", lambda *given: None)
        patch.setattr(delivery, "_POLL_SECONDS", 3600)  # rows are delivered at the end alone

    def prepare(self, root: Path) -> None:
        store = Artifact(root, "ingest", 1, {})
        dataset = open_dataset(
            "synthetic", None, part="target", size=[32, 16], identities=4, test_identities=2, cameras=2
        )
        write_shard(store.path, 0, list(dataset.records()), dataset.read, "header")
        finish_store(store.path, 1, dataset.name, dataset.version)
        store.finish({})

    def artifact(self, root: Path) -> Artifact:
        config = Finetune(
            epochs=self.epochs,
            identities=4,
            instances=2,
            warmup_epochs=0,
            precision="fp32",
            padding=2,
            compile=False,
            evaluate_every=1,
            keep_every_epochs=1,
            keep_checkpoints=1,
        )
        backbone = Backbone(name="vit_tiny", depth=1, img_size=(32, 16))
        return finetune.plan(Artifact(root, "ingest", 1, {}), None, config, backbone, 0, Resources())


class _Scoring:
    """The stage score: three shards, an image that cannot be decoded, results in pieces."""

    images, shards, broken = 12, 3, 5

    def setting(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        patch.setattr(shard_results, "scoring_actors", lambda: Share(1, 1, False))
        patch.setattr(shard_results, "stream", self._stream)
        patch.setattr(score, "draw", lambda *given: None)

    def prepare(self, root: Path) -> None:
        _write_pool(root, self.images, self.shards)
        proxy = Artifact(root, "proxy", 1, {})
        proxy.path.mkdir(parents=True)
        (proxy.path / "model.safetensors").touch()
        proxy.finish({})

    def artifact(self, root: Path) -> Artifact:
        proxy = Artifact(root, "proxy", 1, {})
        return score.plan(Artifact(root, "ingest", 1, {}), proxy, {"": proxy}, Score(max_bad_fraction=0.5), None)

    def _stream(self, store: Path, rows: list[np.ndarray], build: Any, batch_size: Any) -> Iterator[Any]:
        asked = [int(row) for piece in rows for row in piece]
        for start in range(0, len(asked), 5):
            part = asked[start : start + 5]
            good = np.array([row for row in part if row != self.broken], np.int64)
            values = (good / self.images).astype(np.float32)[:, None]
            if build.keywords.get("keep", False):
                source = np.stack([values[:, 0], np.sqrt(1 - values[:, 0] ** 2)], axis=1)
                own = np.stack([np.full(len(good), 1e-5), good % 2], axis=1)
                values = np.concatenate([values, own, source, np.tile([1.0, 0.0], (len(good), 1))], axis=1)
            yield good, values.astype(np.float32), {row: "truncated" for row in part if row == self.broken}


class _Measuring:
    """The stage quality: three shards, an image that cannot be decoded, tasks of three images."""

    images, shards, broken = 12, 3, 5

    def setting(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        patch.setattr(quality, "ray", _Ray())
        patch.setattr(quality, "_IMAGES_PER_TASK", 3)
        patch.setattr(quality, "_draw", lambda *given: None)

    def prepare(self, root: Path) -> None:
        _write_pool(root, self.images, self.shards, self.broken)

    def artifact(self, root: Path) -> Artifact:
        quality._opened.cache_clear()  # each run is a process of its own
        return quality.plan(Artifact(root, "ingest", 1, {}))


def _write_pool(root: Path, images: int, shards: int, broken: int | None = None) -> None:
    """Write a store whose shards take turns; the image `broken` cannot be decoded."""
    store = Artifact(root, "ingest", 1, {})
    for shard in range(shards):
        records = [Record(f"{number:02d}.png", -1, -1, "pool", "") for number in range(shard, images, shards)]
        write_shard(store.path, shard, records, partial(_pool_image, broken), "header")
    finish_store(store.path, shards, "drawn", "")
    store.finish({})


def _pool_image(broken: int | None, record: Record) -> bytes:
    number = int(record.key[:2])
    return _drawn(number)[: -40 if number == broken else None]


class _Finishing:
    """A stage that leaves files of many kinds; one of them, in a folder, is written without being synced."""

    def setting(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        pass

    def prepare(self, root: Path) -> None:
        pass

    def artifact(self, root: Path) -> Artifact:
        return Artifact(root, "stage", 1, {}, job=self._job)

    def _job(self, context: Any) -> dict[str, Any]:
        for name in ("figures/inner", "checkpoints"):
            (context.folder / name).mkdir(parents=True, exist_ok=True)
        (context.folder / "checkpoints" / "1.pt").write_bytes(b"large")
        (context.folder / "figures" / "inner" / "curve.png").write_bytes(b"drawn" * 50)
        (context.folder / "figures" / "curve.csv").write_text("a,b\n")
        write_atomically(context.folder / "table.json", json.dumps({"a": 1}))
        return {"images": 3}


def made(artifact: Artifact) -> Artifact:
    """Make an artifact, with an MLflow run that only remembers."""
    return produce(artifact, RecordedRun(), Screen(Console(file=io.StringIO())), {})


def scenarios() -> dict[str, Scenario]:
    """Return the stages to disturb, by name."""
    fresh, changed, damaged = _Ingesting(), _Ingesting(), _Ingesting()
    rest: dict[str, Any] = {
        "training": _Training(),
        "scoring": _Scoring(),
        "measuring": _Measuring(),
        "finishing": _Finishing(),
    }
    return {
        "ingest": Scenario(fresh.artifact, fresh.nothing, fresh.setting),
        "ingest of files that changed": Scenario(changed.artifact, changed.of_files_that_changed, changed.setting),
        "damaged store": Scenario(damaged.artifact, damaged.damaged, damaged.setting),
        **{name: Scenario(one.artifact, one.prepare, one.setting) for name, one in rest.items()},
    }
