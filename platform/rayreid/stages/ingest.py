"""Stage *ingest*: any dataset → image store, one Ray task per shard."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rayreid.artifacts import Artifact, data_path
from rayreid.config import Source
from rayreid.data.datasets import Dataset, open_dataset
from rayreid.data.index import finish_store
from rayreid.data.shards import Record, write_shard
from rayreid.data.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.figures import image_sheet
from rayreid.stages.production import Work, identity

VERSION = 2  # raised, too, when the drawn dataset draws something else
_SHARD_IMAGES = (512, 20_000)
_SHEET = 48


def plan(root: Path, source: Source) -> Artifact:
    """The image store of a dataset. Its folder is part of the identity: another folder is another dataset."""
    return Artifact(root, "ingest", VERSION, identity(source=source), job=partial(_ingest, source))


def open_source(source: Source) -> Dataset:
    """The dataset that a configuration names.

    Raises:
        UserError: unknown dataset or option, missing folder, another layout.
    """
    return open_dataset(source.dataset, str(data_path(source.root)) if source.root else None, **source.options)


def _ingest(source: Source, work: Work) -> dict[str, Any]:
    dataset = open_source(source)
    records = dataset.records()
    if not records:
        raise UserError(f"{source.root or source.dataset}: no image found for dataset {source.dataset!r}")
    shards = _deal(records)
    task = ray.remote(num_cpus=1)(write_shard)
    read = ray.put(dataset.read)
    waiting = [task.remote(work.folder, n, part, read, source.verify) for n, part in enumerate(shards)]
    with work.screen.bar("reading images", len(records)) as bar:
        done, sizes = 0, dict(zip(waiting, map(len, shards), strict=True))
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=2)
            for reference in ready:
                ray.get(reference)
                done += sizes[reference]
            bar.to(done)
    manifest = finish_store(work.folder, len(shards), dataset.name, dataset.version, ignored=dataset.ignored)
    store = ImageStore(work.folder)
    _record(work, store, source, manifest)
    return {
        "images": len(store),
        "rejected": sum(manifest["rejected"].values()),
        "dataset": f"{dataset.name} {dataset.version}".strip(),
        "fingerprint": store.fingerprint,
    }


def _deal(records: Sequence[Record]) -> list[Sequence[Record]]:
    """Shards of equal length, at most 20,000 images (about 256 MiB of person crops), several where that allows."""
    least, most = _SHARD_IMAGES
    length = min(max(-(-len(records) // 8), least), most)
    return [records[start : start + length] for start in range(0, len(records), length)]


def _record(work: Work, store: ImageStore, source: Source, manifest: Mapping[str, Any]) -> None:
    """Tell MLflow what was ingested, with a sheet of examples."""
    profile = {name: manifest[name] for name in ("stored", "rejected", "counts", "identities", "cameras")}
    work.run.dataset(source.dataset, store.fingerprint, source.root or source.dataset, profile, "ingest")
    for name in ("manifest.json", "rejected.parquet"):
        work.run.file(work.folder / name)
    rows = np.linspace(0, len(store) - 1, min(_SHEET, len(store))).astype(int)
    work.run.figure(image_sheet([store.image(row) for row in rows]), "figures/examples.png")
    for reason, count in manifest["rejected"].items():
        work.screen.say(f"    rejected: {count} {reason} (listed in {work.folder / 'rejected.parquet'})")
