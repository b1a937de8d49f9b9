"""Stage *ingest*: any dataset → image store, one Ray task per shard.

Shards are submitted while the dataset is still being listed, and the driver keeps no listing: its memory does not grow
with the pool.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
from rich.markup import escape

from rayreid.config import Ingest, Source
from rayreid.console import Bar
from rayreid.data.datasets import Dataset, location, open_source
from rayreid.data.datasets.existing_store import ExistingStore
from rayreid.data.store.index import clear_strays, finish_store, remove_shards
from rayreid.data.store.inspection import sample_images
from rayreid.data.store.listing import deal, write_part
from rayreid.data.store.manifest import MANIFEST
from rayreid.data.store.shards import Record
from rayreid.data.store.store import ImageStore
from rayreid.data.store.witness import Witness, digest_of_files, write_witness
from rayreid.errors import UserError
from rayreid.evaluation.image_sheets import image_sheet
from rayreid.execution.production import StageContext, identity
from rayreid.execution.resources import ANYWHERE
from rayreid.files import Guard, check_guards, guard_of, guarded, sync_folder
from rayreid.storage.artifacts import Artifact
from rayreid.storage.damage import records_set_aside

VERSION = 3  # raise it also when the synthetic dataset draws other images
_DEFAULT = Ingest()
_AHEAD = 2  # submitted shards per CPU
_SHEET = 48


def plan(root: Path, source: Source, config: Ingest = _DEFAULT) -> Artifact:
    """Return the image store of a dataset. The folder is part of its identity: another folder is another dataset."""
    return Artifact(root, "ingest", VERSION, identity(source=source), job=partial(_ingest, source, config))


def _ingest(source: Source, config: Ingest, context: StageContext) -> dict[str, Any]:
    dataset = open_source(source)
    if isinstance(dataset, ExistingStore):
        manifest = dataset.adopt(context.folder)
        examples = sample_images(ImageStore(context.folder), _SHEET, shard=0)[1]  # each shard may be fetched from afar
        _record(context, source, manifest, examples, dataset.left_out)
    else:
        manifest, examples = _stored(dataset, source, context)
        _record(context, source, manifest, examples, dataset.left_out)
        _check_rejected(source, config, manifest, context.folder)
        context.checksums.update({shard["file"]: shard["checksum"] for shard in manifest["shards"]})
    _check_unchanged(source, manifest, context.folder)
    return {
        "images": manifest["stored"],
        "rejected": sum(manifest["rejected"].values()),
        "left_out": sum(manifest.get("left_out", {}).values()),  # an older store has none
        "dataset": f"{dataset.name} {dataset.version}".strip(),
        "fingerprint": manifest["fingerprint"],
    }


def _stored(dataset: Dataset, source: Source, context: StageContext) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read all images into the artifact's store, and return its manifest and examples."""
    _begin(context.folder, dataset, location(source))
    with context.screen.bar("reading images", None) as bar:
        shards, listed = _write(dataset, context.folder, source.verify, bar)
    for note in dataset.notes:
        context.screen.say(escape(f"    {note}"))
    if not shards:
        raise UserError(f"{source.root or source.dataset}: no image found for dataset {source.dataset!r}")
    join = ray.remote(num_cpus=1, scheduling_strategy=ANYWHERE)(_for_this_run)
    left_out = {reason: count for reason, (count, _) in dataset.left_out.items()}
    return ray.get(
        join.remote(
            _join,
            guard_of(context.folder),
            context.folder,
            shards,
            dataset.name,
            dataset.version,
            dataset.ignored,
            listed,
            left_out,
        )
    )


def _begin(folder: Path, dataset: Dataset, place: str) -> None:
    """Record the files that are about to be read, and remove what an earlier ingest read from files that changed.

    An ingest that was refused for its rejected images reads the shards of these again: they may have been mended.
    """
    check_guards(folder)
    witness = Witness(folder)
    begun = (folder / "shards").exists()  # a first ingest need not list the files twice
    if begun and witness.digest != digest_of_files(dataset.sources()):
        if records_set_aside(folder):  # they are parts of a store from which artifacts may have been made
            raise UserError(
                f"{place}: its files are not those of its store, which is damaged ({folder}); restore them, or set "
                "revision beside root to ingest the dataset as it is now, or, if nothing was made from that store, "
                "delete the folders of this store"
            )
        remove_shards(folder)
    elif (folder / MANIFEST).exists() and not records_set_aside(folder):
        remove_shards(folder, only_with_rejected=True)
    if begun:  # a power failure must not bring back shards of other files than the witness names
        sync_folder(folder / "shards")
    (folder / MANIFEST).unlink(missing_ok=True)
    write_witness(folder, dataset.sources(), place)


def _check_rejected(source: Source, config: Ingest, manifest: Mapping[str, Any], folder: Path) -> None:
    rejected, read = sum(manifest["rejected"].values()), manifest["read"]
    if rejected > config.max_rejected * read:
        why = ", ".join(f"{count:,} {reason}" for reason, count in manifest["rejected"].items())
        raise UserError(
            f"{location(source)}: {rejected:,} of {read:,} images were rejected ({why}), more than "
            f"ingest.max_rejected={config.max_rejected:g}; mend them (listed in {folder / 'rejected.parquet'}) and run "
            "again, or raise it"
        )


def _check_unchanged(source: Source, manifest: Mapping[str, Any], folder: Path) -> None:
    """Refuse other images than those of a store that was damaged: artifacts made from that one may exist."""
    for aside, record in records_set_aside(folder).items():
        if record.facts.get("fingerprint", manifest["fingerprint"]) != manifest["fingerprint"]:
            raise UserError(
                f"{location(source)}: its images or labels are not those of its store, which is damaged ({aside}); set "
                f"revision={source.revision + 1} beside root to ingest it as it is now, or, if nothing was made from "
                "that store, delete this folder"
            )


def _write(dataset: Dataset, folder: Path, verify: Literal["decode", "header"], bar: Bar) -> tuple[int, int]:
    """Write all shards, some at a time, and return the number of shards and of listed images."""
    clear_strays(folder)
    task = ray.remote(num_cpus=1, scheduling_strategy=ANYWHERE)(_for_this_run)
    guard = guard_of(folder)
    read: ray.ObjectRef[Callable[[Record], bytes]] = ray.put(dataset.read)
    images: dict[ray.ObjectRef[None], int] = {}
    listed = done = shards = 0
    for part in deal(dataset.records()):
        images[task.remote(write_part, guard, folder, shards, part, read, verify)] = part.images
        listed += part.images
        shards += 1
        while len(images) >= _ahead():
            done += _finished(images)
            bar.to(done)
    bar.of(listed)
    while images:
        done += _finished(images)
        bar.to(done)
    return shards, listed


def _for_this_run(write: Callable[..., Any], guard: Guard | None, folder: Path, *rest: Any) -> Any:
    """Call a function that writes to a folder, in a Ray task, under the guard of the process that started the task."""
    with guarded(folder, guard):
        return write(folder, *rest)


def _ahead() -> int:
    """Return how many shards to submit at a time; more once nodes have joined. A cluster may begin without a CPU."""
    return max(_AHEAD, _AHEAD * int(ray.cluster_resources().get("CPU", 0)))


def _join(
    folder: Path,
    shards: int,
    name: str,
    version: str,
    ignored: list[tuple[str, str]],
    listed: int,
    left_out: Mapping[str, int],
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Join the shards in a worker, so that only it holds the whole index; return the manifest and examples."""
    manifest = finish_store(folder, shards, name, version, ignored, listed, left_out)
    return manifest, sample_images(ImageStore(folder), _SHEET)[1]


def _finished(images: "dict[ray.ObjectRef[None], int]") -> int:
    """Wait briefly for shards, remove those that are written from `images`, and return their number of images."""
    ready, _ = ray.wait(list(images), timeout=2)
    ray.get(ready)
    return sum(images.pop(reference) for reference in ready)


def _record(
    context: StageContext,
    source: Source,
    manifest: Mapping[str, Any],
    examples: list[np.ndarray],
    left_out: Mapping[str, tuple[int, str]],
) -> None:
    """Log to MLflow what was ingested, with a sheet of examples."""
    names = ("stored", "rejected", "left_out", "counts", "identities", "cameras")
    profile = {name: manifest.get(name, {}) for name in names}
    context.run.dataset(source.dataset, manifest["fingerprint"], source.root or source.dataset, profile, "ingest")
    for name in (MANIFEST, "rejected.parquet"):
        context.run.file(context.folder / name)
    if examples:
        context.run.figure(image_sheet(examples), "figures/examples.png")
    for reason, count in manifest["rejected"].items():
        place = context.folder / "rejected.parquet"
        context.screen.say(escape(f"    rejected: {count} {reason} (listed in {place})"))
    if left_out:
        files = ", ".join(f"{count} {reason} (first {first})" for reason, (count, first) in sorted(left_out.items()))
        context.screen.say(escape(f"    left out: {files}"))
