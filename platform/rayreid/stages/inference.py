"""Embarrassingly parallel forward passes over a store: Ray Data streams row ranges to a pool of actors.

Images never travel: an actor is sent row numbers, reads the bytes through the memory map, decodes them in threads and
returns a few floats per image. So any number of actors on any node costs the network nothing but the result.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray.data
import torch
from ray.data import ActorPoolStrategy

from rayreid.cluster import scoring_actors
from rayreid.data.batch import ImageBatch
from rayreid.data.images import decode
from rayreid.data.reid_transforms import ReIDTest
from rayreid.data.store import ImageStore
from rayreid.errors import UserError
from rayreid.models.neck import load_neck
from rayreid.models.weights import load_backbone
from rayreid.training.loop import autocast, resolve_precision

_CHUNK = 1024
"""Rows per work item: enough to pay for its scheduling, few enough to keep all actors busy to the end."""


class Embedder:
    """A backbone that sees images its own way: the size, mean, std and resampling that its weights file states.

    Where the file has a neck, features are those after it.

    Args:
        path: weights written by this project.
        device: where it runs.
        precision: of the forward pass; features come back in float32.
    """

    def __init__(self, path: Path, device: torch.device, precision: str):
        backbone, header = load_backbone(path, drop_path=0.0)
        self.backbone = backbone.eval().to(device)
        self.neck = load_neck(path).to(device)
        size, how = tuple(backbone.spec["img_size"]), header.get("interpolation", "bilinear")
        self.transform = ReIDTest(size, header["mean"], header["std"], how)
        self.device, self.precision = device, resolve_precision(precision, device)

    @torch.inference_mode()
    def __call__(self, images: ImageBatch) -> torch.Tensor:
        """Global features, float32 (B, D), not normalised."""
        with autocast(self.precision, self.device):
            features = self.backbone(self.transform(images.to(self.device)))
        return self.neck(features.float())


class Head(Protocol):
    """What is computed of a decoded batch."""

    def __call__(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        """(B, …) values."""


class _Actor:
    """Reads, decodes and computes ranges of rows.

    What the user can mend comes back as a value, in the column `fault` ("": none): Ray Data would wrap an exception in
    one of its own and leave nothing of it but the text of a traceback.
    """

    def __init__(self, store: Path, build: Callable[[torch.device], Head], batch_size: int, cpus: int):
        torch.set_num_threads(cpus)
        self.batch_size = batch_size
        self.pool = ThreadPoolExecutor(cpus)
        self.fault = ""
        try:
            self.store = ImageStore(store)
            self.head = build(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        except UserError as error:
            self.fault = str(error)

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, Any]:
        try:
            if self.fault:
                raise UserError(self.fault)
            return {**self._compute(item), "fault": [""]}
        except UserError as error:
            nothing = [np.zeros(0, np.int64)]
            values = [np.zeros(0, np.float32)]
            return {"row": nothing, "value": values, "bad": nothing, "reason": [""], "fault": [str(error)]}

    def _compute(self, item: dict[str, np.ndarray]) -> dict[str, Any]:
        rows = np.concatenate([np.asarray(part) for part in item["rows"]])
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        decoded = [self.pool.submit(self._decode, batch) for batch in batches]
        good, values, bad, reasons = [], [], [], []
        for future in decoded:
            whole, images, broken = future.result()
            if len(whole):
                good.append(whole)
                values.append(self.head(images, self.store.keys[whole]))
            for row, reason in broken:
                bad.append(row)
                reasons.append(reason)
        empty = values[0][:0] if values else np.zeros(0, np.float32)
        return {
            "row": [np.concatenate([np.zeros(0, np.int64), *good])],
            "value": [np.concatenate([empty, *values])],
            "bad": [np.asarray(bad, np.int64)],
            "reason": ["\n".join(reasons)],
        }

    def _decode(self, rows: np.ndarray) -> tuple[np.ndarray, ImageBatch, list[tuple[int, str]]]:
        whole, images, broken = [], [], []
        for row in rows:
            try:
                images.append(decode(self.store.encoded(int(row))))
                whole.append(row)
            except ValueError as error:
                broken.append((int(row), str(error)))
        return np.asarray(whole, np.int64), ImageBatch.collate(images) if images else None, broken  # type: ignore[return-value]


def stream(
    store: Path, rows: Sequence[np.ndarray], build: Callable[[torch.device], Head], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    """Compute a head over images, on all GPUs or CPUs of the cluster.

    Args:
        store: the image store's folder, on storage that all nodes see.
        rows: index rows in pieces that belong together (a shard's, say); larger pieces are cut.
        build: (device) → head; pickled to the actors.
        batch_size: images per forward pass.

    Yields:
        In no particular order: (rows int64 (n,), values (n, …), {row: reason} of the images that could not be decoded).

    Raises:
        UserError: what the store or the head raised on an actor.
    """
    items = [{"rows": piece[start : start + _CHUNK]} for piece in rows for start in range(0, len(piece), _CHUNK)]
    if not items:  # Ray Data makes no dataset of nothing
        return
    # Ray Data's own account of an execution is for its developers; the stages show their own progress.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    share = scoring_actors()
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Actor,
        batch_size=1,
        compute=ActorPoolStrategy(size=min(share.workers, len(items))),
        num_cpus=share.cpus,
        num_gpus=1 if share.gpu else 0,
        fn_constructor_args=(store, build, batch_size, share.cpus),
    )
    yield from map(_unpack, dataset.iter_rows())


def _unpack(result: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """What an actor gave back of one item."""
    if result["fault"]:
        raise UserError(result["fault"])
    reasons = result["reason"].split("\n") if len(result["bad"]) else []
    broken = dict(zip(map(int, result["bad"]), reasons, strict=True))
    return np.asarray(result["row"]), np.asarray(result["value"]), broken
