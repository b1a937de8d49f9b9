"""Statistics of a complete image store. No image is decoded for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rayreid.data.images import BadImageError
from rayreid.data.store.store import ImageStore


class Spread(NamedTuple):
    """Minimum, median and maximum of some lengths in pixels.

    The median of an even number of lengths is the midpoint of the two in the middle.
    """

    least: int
    median: float
    greatest: int

    @classmethod
    def of(cls, lengths: np.ndarray) -> "Spread":
        """Return the spread of lengths (N,), at least one."""
        return cls(int(lengths.min()), float(np.median(lengths)), int(lengths.max()))


@dataclass(frozen=True)
class Summary:
    """The statistics of one store.

    Attributes:
        dataset: The dataset's name.
        version: The dataset's edition, "" if it has none.
        fingerprint: Hash of all images and labels.
        read: Number of images that the ingest read; it equals `stored` plus the sum of `rejected`.
        stored: Number of images in the store.
        rejected: Number of images that were not stored, by reason.
        left_out: Number of files that the dataset did not take for images, by reason.
        counts: Number of images by split.
        identities: Number of distinct known identities by split.
        cameras: Number of distinct known cameras.
        shards: Number of shards in the manifest.
        shard_bytes: Size on disk of the shards that exist.
        missing: Shard files that do not exist.
        heights: Heights of the images, in pixels.
        widths: Widths of the images, in pixels. The image with the median width need not have the median height.
    """

    dataset: str
    version: str
    fingerprint: str
    read: int
    stored: int
    rejected: Mapping[str, int]
    left_out: Mapping[str, int]
    counts: Mapping[str, int]
    identities: Mapping[str, int]
    cameras: int
    shards: int
    shard_bytes: int
    missing: tuple[str, ...]
    heights: Spread
    widths: Spread


def summarise(store: ImageStore) -> Summary:
    """Return a store's statistics, from its manifest, its index and the sizes of its shard files."""
    manifest = store.manifest
    sizes = {str(shard): shard.size() for shard in store.files}
    return Summary(
        dataset=manifest["dataset"],
        version=manifest["version"],
        fingerprint=store.fingerprint,
        read=manifest["read"],
        stored=manifest["stored"],
        rejected=manifest["rejected"],
        left_out=manifest.get("left_out", {}),  # a store of format 1 has none
        counts=manifest["counts"],
        identities=manifest["identities"],
        cameras=manifest["cameras"],
        shards=len(sizes),
        shard_bytes=sum(size or 0 for size in sizes.values()),
        missing=tuple(name for name, size in sizes.items() if size is None),
        heights=Spread.of(store.heights),
        widths=Spread.of(store.widths),
    )


def sample_rows(store: ImageStore, count: int) -> np.ndarray:
    """Return `count` index rows spread evenly over the store, int64 ascending, or all rows if there are fewer."""
    return _spread(np.arange(len(store)), count)


def sample_images(store: ImageStore, count: int, shard: int | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Decode some images, except those that cannot be decoded (`verify: header` lets them in).

    Args:
        store: The store.
        count: Number of images, spread evenly over the index.
        shard: The only shard to read; None reads all.

    Returns:
        Their index rows, int64, and the images, uint8 (H, W, 3) each.
    """
    rows, images = [], []
    for row in sample_rows(store, count) if shard is None else _spread(np.flatnonzero(store.shards == shard), count):
        (image,) = store.decoded([row])
        if not isinstance(image, BadImageError):
            images.append(image)
            rows.append(row)
    return np.array(rows, np.int64), images


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]


def captions(store: ImageStore, rows: np.ndarray) -> list[str]:
    """Return the known identity and camera of the images in some index rows: "12 c3", "12", "c3" or ""."""
    known = (
        (
            str(store.pids[row]) if store.pids[row] >= 0 else "",
            f"c{store.camids[row]}" if store.camids[row] >= 0 else "",
        )
        for row in rows
    )
    return [" ".join(filter(None, pair)) for pair in known]
