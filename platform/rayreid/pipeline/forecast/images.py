"""Numbers of images in the datasets of an experiment: from their stores, their listings, or the published numbers."""

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

from rayreid.config import Source
from rayreid.data.datasets import location, open_source
from rayreid.data.store.manifest import read_manifest
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.pipeline.forecast.figures import PUBLISHED_IMAGES
from rayreid.storage.artifacts import Artifact

_SECONDS = 60.0
"""Longest time to list a dataset only to count its images."""


@dataclass(frozen=True)
class ImageCount:
    """The images of a dataset.

    Attributes:
        splits: Number of images per split.
        origin: What they were counted in.
        pids, camids: Identity and camera of each labelled training image; None where only the numbers are known.
    """

    splits: Mapping[str, int]
    origin: Literal["store", "listing", "published"]
    pids: np.ndarray | None = None
    camids: np.ndarray | None = None

    @property
    def total(self) -> int:
        """Return the number of all images."""
        return sum(self.splits.values())

    @property
    def train(self) -> int:
        """Return the number of training images that count for a fine-tuning."""
        return self.splits.get("train", 0) if self.pids is None else len(self.pids)


class ImageCounts:
    """Cache of the numbers of images, so that each dataset is listed once; nothing is written.

    Attributes:
        faults: Why datasets cannot be counted here, by the id of their store; in one line.
    """

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self._known: dict[str, ImageCount | None] = {}

    def of(self, store: Artifact) -> ImageCount | None:
        """Return the images of a store, or of the dataset of which it would be made; None if they are not known."""
        if store.id not in self._known:
            self._known[store.id] = self._count(store)
        return self._known[store.id]

    def _count(self, store: Artifact) -> ImageCount | None:
        source = Source(**store.fields["source"])
        try:
            return _stored(store) if store.complete else _listed(source)
        except (UserError, OSError) as error:
            self.faults[store.id] = str(error)
            return published(source)


def published(source: Source) -> ImageCount | None:
    """Return the published numbers of a dataset by its name, or that of its folder; None if it has none."""
    splits = _published(source.model_dump())
    return ImageCount(splits, "published") if splits else None


def _published(source: Mapping[str, Any]) -> dict[str, int]:
    options = source.get("options") or {}
    if source.get("dataset") == "combined":
        parts = [_published(part) for part in options.get("parts", ()) if isinstance(part, Mapping)]
        if not parts or not all(parts):
            return {}
        return {"train": sum(part.get("train", 0) for part in parts)}
    # The layout of a folder says nothing about its size: a part of Market-1501 in its layout has another name.
    name = PurePosixPath(str(source["root"])).name if source.get("root") else str(source.get("dataset"))
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return dict(PUBLISHED_IMAGES.get(re.sub(r"(v[0-9]*|reid)$", "", plain), {}))


def _stored(store: Artifact) -> ImageCount:
    counts = read_manifest(store.path)["counts"]
    if not counts.get("train"):
        return ImageCount(counts, "store")
    images = ImageStore(store.path)
    rows = images.rows_of("train")
    rows = rows[images.pids[rows] >= 0]
    return ImageCount(counts, "store", images.pids[rows], images.camids[rows])


def _listed(source: Source) -> ImageCount:
    until = time.monotonic() + _SECONDS
    counts: Counter[str] = Counter()
    labels: list[tuple[int, int]] = []
    for record in open_source(source).records():
        counts[record.split] += 1
        if record.split == "train" and record.pid >= 0:
            labels.append((record.pid, record.camid))
        if counts.total() % 10_000 == 0 and time.monotonic() > until:
            raise UserError(
                f"{location(source)}: it has more than {counts.total():,} images, and listing them all takes longer "
                f"than {_SECONDS:.0f} s; ingest it first (rayreid ingest FILE)"
            )
    if not counts:
        raise UserError(f"{location(source)}: dataset {source.dataset} has no image")
    pids, camids = np.array(labels, np.int64).reshape(-1, 2).T
    return ImageCount(dict(counts), "listing", pids, camids) if labels else ImageCount(dict(counts), "listing")
