"""Stage *priority*: θs features → a priority per pool image, by similarity to the target or by clusters.

The priorities are an artifact of their own, so that a cut at another fraction recomputes nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import pyarrow as pa
import ray
import torch

from rayreid.config import Ranked, Resources
from rayreid.data.store.store import ImageStore
from rayreid.execution.gpus import assigned_device
from rayreid.execution.production import StageContext
from rayreid.execution.resources import ANYWHERE, Share, training_share
from rayreid.execution.shard_results import rows_by_shard
from rayreid.execution.task_pieces import pieces_in_tasks
from rayreid.parquet import Kind, read_columns, write_table
from rayreid.selection.meaning import ROUNDING, Diagnosis, diagnose
from rayreid.selection.provenance import Provenance
from rayreid.selection.registry import STRATEGIES
from rayreid.selection.similarity import Features
from rayreid.stages import features, score
from rayreid.stages.score_meaning import facts_of, tell
from rayreid.stages.scored_sample import SAMPLE, sampled_rows
from rayreid.state_files import remake
from rayreid.storage.artifacts import Artifact
from rayreid.storage.roles import Role

VERSION = 1
TABLE = "priority.parquet"

_CROWD = 0.05
"""Largest share of a pool that one group of near-duplicates has without a warning."""
_COLLAPSED = 0.005
"""Least spread of features without a warning: float16 alone gives them one of 0.0003."""

T = TypeVar("T")


def plan(
    pool: Artifact,
    found: Artifact,
    targets: Mapping[str, tuple[Artifact, Artifact]],
    config: Ranked,
    seed: int,
    provenance: Provenance | None,
) -> Artifact:
    """Plan the priorities of a pool by a strategy that ranks by features.

    Args:
        pool: The pool's image store.
        found: Its θs features.
        targets: Store and θs features of each target's training images, by name ("": the only one); for strategies
            that compare with these.
        config: The strategy and its options.
        seed: For strategies that are seeded.
        provenance: If given, used for judging only.
    """
    strategy = STRATEGIES[config.strategy]
    inputs = {"pool": pool, "features": found}
    fields: dict[str, Any] = {"strategy": config.strategy}
    fields |= config.options(strategy.options)
    if fields.get("centre") == strategy.centred:  # what `auto` stands for
        del fields["centre"]
    if strategy.seeded:
        fields["seed"] = seed
    if strategy.targets:
        for name, (store, theirs) in targets.items():
            inputs |= {Role.of("target", name): store, Role.of("target_features", name): theirs}
    return Artifact(pool.root, "priority", VERSION, fields, inputs, partial(_rank, config, seed, provenance))


def read_priority(folder: Path) -> pa.Table:
    """Return columns `key` and `priority` (float64, NaN if an image cannot be decoded), N rows in the store's order."""
    columns = {"key": pa.types.is_string, "priority": pa.types.is_floating}
    return read_columns(folder / TABLE, columns, remedy=remake(folder))


def read_groups(folder: Path, name: Literal["cluster", "group"]) -> np.ndarray | None:
    """Return the cluster, or the group of near-duplicates, of each pool image; None if the priorities come without.

    Args:
        folder: The priorities.
        name: The column, integers (N,), −1 for images that are in none.
    """
    columns: dict[str, Kind] = {name: pa.types.is_integer}
    table = read_columns(folder / TABLE, columns, remedy=remake(folder), optional=columns)
    return table[name].to_numpy() if table.column_names else None


def _rank(config: Ranked, seed: int, provenance: Provenance | None, context: StageContext) -> dict[str, Any]:
    store = ImageStore(context.input("pool"))
    folders = {role: context.input(role) for role in context.artifact.inputs}
    priority, facts, *more = on_a_worker(_compute, config, seed, folders)
    write_priority(context, store, {"priority": priority, **(more[0] if more else {})})
    separation = provenance.judge(store.keys, priority) if provenance else None
    figures = _diagnosis(store, priority, features.read(context.input("features"), store, "all"))
    known = facts_of(context.artifact, figures, tell(context, figures, separation)) if figures else {}
    score.draw(context, store, priority, provenance, config.strategy)
    judged = {"auc": separation.auc} if separation else {}
    _warn_of_a_crowd(context, facts, len(store))
    # A strategy that removes images leaves those without a priority, too.
    missing = "without" if STRATEGIES[config.strategy].images else "bad"
    return {"images": len(priority), missing: int(np.isnan(priority).sum()), **facts, **judged, **known}


def _warn_of_a_crowd(context: StageContext, facts: Mapping[str, float], images: int) -> None:
    """Warn if near-duplicates cannot be told: one group holds much of the pool, or all features are the same."""
    largest, warning = facts.get("largest_group", 0), ""
    if largest > _CROWD * images:
        warning = (
            f"one group of near-duplicates has {largest:,} of {images:,} images: either they are, or θs sees too "
            "little, and select.similarity is too low for it"
        )
    if facts.get("spread", 1.0) < _COLLAPSED:
        warning = (
            f"the features of θs are nearly all the same (spread {facts['spread']:.1e}), so near-duplicates cannot be "
            "told from others: train θs longer, or with another method"
        )
    if warning:
        context.screen.say(f"    [yellow]warning:[/] {warning}")
        context.run.tags({"warning": warning})


def on_a_worker(compute: Callable[..., T], *arguments: Any, cpus_only: bool = False) -> T:
    """Return compute(*arguments, share), called with a GPU, or else with all CPUs of a node.

    Args:
        compute: The function.
        arguments: Its arguments.
        cpus_only: Whether to call it with CPUs even where there is a GPU.
    """
    share = training_share(Resources(gpu=False) if cpus_only else Resources())
    task = ray.remote(num_cpus=share.cpus, num_gpus=1 if share.gpu else 0, scheduling_strategy=ANYWHERE)(compute)
    return cast("T", ray.get(task.remote(*arguments, share)))


def write_priority(context: StageContext, store: ImageStore, columns: Mapping[str, np.ndarray]) -> None:
    """Write the table that `read_priority` reads, and log it.

    Args:
        context: Context of the stage.
        store: The pool.
        columns: `priority` float64 (N,), and others, in the store's order.
    """
    arrays = {name: pa.array(values) for name, values in columns.items()}
    write_table(context.folder / TABLE, pa.table({"key": store.keys_of(np.arange(len(store))), **arrays}))
    context.run.file(context.folder / TABLE)


def _diagnosis(
    store: ImageStore, priority: np.ndarray, parts: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Diagnosis | None:
    """Return the figures of a sample of the priorities; None if no image of the sample has one.

    Args:
        store: The pool.
        priority: Priorities by index row, float64 (N,), NaN if an image cannot be decoded.
        parts: Index rows and features of θs, as `features.read` yields them.
    """
    chosen = sampled_rows(store, np.arange(len(store)), SAMPLE)
    found = [(rows[here], units[here]) for rows, units in parts if (here := np.isin(rows, chosen)).any()]
    rows, source = (np.concatenate(columns) for columns in zip(*found, strict=True))
    usable = np.isfinite(priority[rows])
    rows, source = rows[usable], source[usable].astype(np.float32)
    if not len(rows):
        return None
    return diagnose(
        priority[rows],
        ROUNDING["fp16"],  # features are stored in it
        heights=store.heights[rows],
        widths=store.widths[rows],
        brightness=np.array([image.mean() / 255 for image in store.images(rows.tolist())]),
        source=source,
    )


def _compute(config: Ranked, seed: int, folders: Mapping[str, Path], share: Share) -> tuple[Any, ...]:
    """Return, on a worker, the priority by index row (float64, NaN: none), facts, and other columns, if any."""
    torch.set_num_threads(share.cpus)
    device = assigned_device(share.gpu)
    strategy = STRATEGIES[config.strategy]
    options: dict[str, Any] = {name: getattr(config, name) for name in strategy.options}
    if options.get("centre") == "auto":
        options["centre"] = strategy.centred
    if strategy.seeded:
        options["seed"] = seed
    if strategy.pieces and device.type == "cpu":  # tasks would have to share a GPU
        options["work"] = pieces_in_tasks()
    if strategy.images:
        options |= bytes_and_sizes(ImageStore(folders["pool"]))
    if strategy.targets:
        options["targets"] = [
            features_in(folders[Role.of("target_features", role.target)], folders[role], "train")
            for role in map(Role, folders)
            if role.kind == "target"
        ]
    ranked: tuple[Any, ...] = strategy.rank(features_in(folders["features"], folders["pool"], "all"), device, **options)
    return ranked


def bytes_and_sizes(store: ImageStore) -> dict[str, np.ndarray]:
    """Return what strategies with `images` are given: `copies` and `sizes`, int64 (N,) each."""
    copies = store.digests().dictionary_encode().indices.to_numpy().astype(np.int64)
    return {"copies": copies, "sizes": store.heights.astype(np.int64) * store.widths}


def features_in(folder: Path, images: Path, part: features.Part) -> Features:
    """Return the features in an artifact's folder.

    Args:
        folder: The features.
        images: The store of their images.
        part: The part of the store that they belong to.
    """
    store = ImageStore(images)
    shards = rows_by_shard(store, features.rows_of(store, part))
    return Features(store.keys, partial(features.read_shards, folder, shards))  # a task of some pieces needs no store
