"""What a complete image store holds, counted for a person to look at; no image is decoded for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rayreid.data.images import BadImageError, decode
from rayreid.data.store.store import ImageStore


class Spread(NamedTuple):
    """Least, median and greatest of some lengths in pixels; the median of an even number lies between two."""

    least: int
    median: float
    greatest: int

    @classmethod
    def of(cls, lengths: np.ndarray) -> "Spread":
        """The spread of lengths (N,), at least one."""
        return cls(int(lengths.min()), float(np.median(lengths)), int(lengths.max()))


@dataclass(frozen=True)
class Summary:
    """The figures of one store.

    Attributes:
        dataset: The dataset's name.
        version: Which edition of it, "" where it has none.
        fingerprint: Hash of all images and labels.
        read: Images that the ingest met; `stored` and the sum of `rejected` add up to it.
        stored: Images in the store.
        rejected: Number of images by the reason for which they were not stored.
        counts: Images by split.
        identities: Distinct known identities by split.
        cameras: Distinct known cameras.
        shards: Number of shards by the manifest.
        shard_bytes: What the shards that are there take on disk.
        missing: Shard files that are not there.
        heights: Of the images, in pixels.
        widths: Of the images, in pixels; their median image need not be that of `heights`.
    """

    dataset: str
    version: str
    fingerprint: str
    read: int
    stored: int
    rejected: Mapping[str, int]
    counts: Mapping[str, int]
    identities: Mapping[str, int]
    cameras: int
    shards: int
    shard_bytes: int
    missing: tuple[Path, ...]
    heights: Spread
    widths: Spread


def summarise(store: ImageStore) -> Summary:
    """Return a store's figures, from its manifest, its index and the sizes of its shard files."""
    manifest = store.manifest
    files = [store.directory / shard["file"] for shard in manifest["shards"]]
    missing = tuple(path for path in files if not path.is_file())
    return Summary(
        dataset=manifest["dataset"],
        version=manifest["version"],
        fingerprint=store.fingerprint,
        read=manifest["read"],
        stored=manifest["stored"],
        rejected=manifest["rejected"],
        counts=manifest["counts"],
        identities=manifest["identities"],
        cameras=manifest["cameras"],
        shards=len(files),
        shard_bytes=sum(path.stat().st_size for path in files if path not in missing),
        missing=missing,
        heights=Spread.of(store.heights),
        widths=Spread.of(store.widths),
    )


def sample_rows(store: ImageStore, count: int) -> np.ndarray:
    """Return `count` index rows spread evenly from the first to the last, int64 ascending; all where it has fewer."""
    return np.linspace(0, len(store) - 1, min(count, len(store))).astype(np.int64)


def sample_images(store: ImageStore, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Decode the images of `sample_rows`; those that cannot be decoded (`verify: header` lets them in) are left out.

    Returns:
        Their index rows, int64, and the images, uint8 (H, W, 3) each.
    """
    rows, images = [], []
    for row in sample_rows(store, count):
        try:
            images.append(decode(store.encoded(row)))
        except BadImageError:
            continue
        rows.append(row)
    return np.array(rows, np.int64), images


def captions(store: ImageStore, rows: np.ndarray) -> list[str]:
    """Return what is known of whom the images of index rows show and who saw them: "12 c3", "12", "c3" or ""."""
    known = (
        (
            str(store.pids[row]) if store.pids[row] >= 0 else "",
            f"c{store.camids[row]}" if store.camids[row] >= 0 else "",
        )
        for row in rows
    )
    return [" ".join(filter(None, pair)) for pair in known]
