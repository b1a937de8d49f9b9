"""Embarrassingly parallel forward passes over a store: Ray Data streams row ranges to a pool of actors.

Images never travel: an actor is sent row numbers, reads the bytes through the memory map, decodes them in threads and
returns a few floats per image. So any number of actors on any node costs the network nothing but the result.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray.data
import torch
from ray.data import ActorPoolStrategy

from rayreid.cluster import scoring_actors
from rayreid.config import Auto
from rayreid.data.batch import ImageBatch
from rayreid.data.images import decode
from rayreid.data.reid_transforms import ReIDTest
from rayreid.data.store import ImageStore
from rayreid.errors import UserError
from rayreid.models.weights import load_backbone
from rayreid.training.loop import autocast, resolve_precision

_CHUNK = {"cpu": 512, "cuda": 4096}
"""Rows per work item: enough to pay for its scheduling, few enough to keep all actors busy to the end."""

AUTO_BATCH = {"cpu": 32, "cuda": 512}
"""Images per forward pass where the user leaves it open: as measured on a CPU, whose caches they should not exceed; on
a GPU where to begin, see `_Actor._values`."""

_AHEAD = 2  # batches that are decoded while another is in the forward pass
_PART = 16  # images that one thread decodes at a time


class Embedder:
    """A backbone that sees images its own way: the size, mean and std that its weights file states.

    Args:
        path: weights written by this project.
        device: where it runs.
        precision: of the forward pass; features come back in float32.
    """

    def __init__(self, path: Path, device: torch.device, precision: str):
        backbone, header = load_backbone(path, drop_path=0.0)
        self.backbone = backbone.eval().to(device)
        self.transform = ReIDTest(tuple(backbone.spec["img_size"]), header["mean"], header["std"])
        self.device, self.precision = device, resolve_precision(precision, device)

    @torch.inference_mode()
    def __call__(self, images: ImageBatch) -> torch.Tensor:
        """Global features, float32 (B, D), not normalised."""
        with autocast(self.precision, self.device):
            features = self.backbone(self.transform(images.to(self.device)))
        return features.float()


def weights_of(folder: Path) -> Path:
    """The weights file of an artifact of pre-training, fine-tuning, or of a user's checkpoint."""
    [path] = folder.glob("*.safetensors")
    return path


class Head(Protocol):
    """What is computed of a decoded batch."""

    def __call__(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        """(B, …) values."""


_Decoded = tuple[np.ndarray, ImageBatch | None, list[tuple[int, str]]]
"""Rows int64 (n,), their images, and (row, reason) of those that could not be decoded."""


class _Actor:
    """Reads, decodes and computes ranges of rows.

    What the user can mend comes back as a value, in the column `fault` ("": none): Ray Data would wrap an exception in
    one of its own and leave nothing of it but the text of a traceback.
    """

    def __init__(self, store: Path, build: Callable[[torch.device], Head], batch_size: int | Auto, cpus: int):
        torch.set_num_threads(cpus)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = AUTO_BATCH[device.type] if batch_size == "auto" else batch_size
        self.decoders = ThreadPoolExecutor(cpus)
        self.collator = ThreadPoolExecutor(1)
        self.fault = ""
        try:
            self.store = ImageStore(store)
            self.head = build(device)
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
        good, values, bad, reasons = [], [], [], []
        for whole, images, broken in self._decoded(rows):
            if images is not None:
                good.append(whole)
                values += self._values(images, self.store.keys_of(whole).to_pylist())
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

    def _values(self, images: ImageBatch, keys: list[str]) -> list[np.ndarray]:
        """The head over a batch: in one forward pass, or in smaller ones where memory does not suffice."""
        values: list[np.ndarray] = []
        done = 0
        while done < len(keys):
            part = slice(done, done + self.batch_size)
            batch = ImageBatch(images.pixels[part], images.heights[part], images.widths[part])
            try:
                values.append(self.head(batch, keys[part]))
                done += len(batch)
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise UserError("not even one image at a time fits the GPU's memory: free some of it") from None
                self.batch_size //= 2
                torch.cuda.empty_cache()
        return values

    def _decoded(self, rows: np.ndarray) -> Iterator[_Decoded]:
        """The images in batches, the next ones being decoded meanwhile."""
        waiting: deque[Future[_Decoded]] = deque()
        start = 0
        while start < len(rows) or waiting:
            if start < len(rows) and len(waiting) <= _AHEAD:
                batch = rows[start : start + self.batch_size]
                parts = [batch[first : first + _PART] for first in range(0, len(batch), _PART)]
                waiting.append(self.collator.submit(_joined, [self.decoders.submit(self._decode, p) for p in parts]))
                start += len(batch)
            else:
                yield waiting.popleft().result()

    def _decode(self, rows: np.ndarray) -> tuple[list[int], list[np.ndarray], list[tuple[int, str]]]:
        whole, images, broken = [], [], []
        for row in rows.tolist():
            try:
                images.append(decode(self.store.encoded(row)))
                whole.append(row)
            except ValueError as error:
                broken.append((row, str(error)))
        return whole, images, broken


def _joined(parts: Sequence["Future[tuple[list[int], list[np.ndarray], list[tuple[int, str]]]]"]) -> _Decoded:
    """One batch of what was decoded in parts."""
    whole: list[int] = []
    images: list[np.ndarray] = []
    broken: list[tuple[int, str]] = []
    for part in parts:
        for all_of_them, some in zip((whole, images, broken), part.result(), strict=True):
            all_of_them += some  # type: ignore[operator]
    return np.asarray(whole, np.int64), ImageBatch.collate(images) if images else None, broken


def stream(
    store: Path, rows: Sequence[np.ndarray], build: Callable[[torch.device], Head], batch_size: int | Auto
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    """Compute a head over images, on all GPUs or CPUs of the cluster.

    Args:
        store: the image store's folder, on storage that all nodes see.
        rows: index rows in pieces that belong together (a shard's, say); larger pieces are cut.
        build: (device) → head; pickled to the actors.
        batch_size: images per forward pass; "auto": see `AUTO_BATCH`.

    Yields:
        In no particular order: (rows int64 (n,), values (n, …), {row: reason} of the images that could not be decoded).

    Raises:
        UserError: what the store or the head raised on an actor.
    """
    if not any(map(len, rows)):  # Ray Data makes no dataset of nothing
        return
    # Ray Data's own account of an execution is for its developers; the stages show their own progress.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    share = scoring_actors()
    chunk = _CHUNK["cuda" if share.gpu else "cpu"]
    items = [{"rows": piece[start : start + chunk]} for piece in rows for start in range(0, len(piece), chunk)]
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
