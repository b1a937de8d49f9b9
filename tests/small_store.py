"""A small complete store whose shards have different sizes."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard


def small_store(directory: Path, shards: int = 3, images: int = 4) -> ImageStore:
    """Write a store of some shards with some images each, and open it."""
    for shard in range(shards):
        records = [Record(f"{shard}-{number}.png", -1, -1, "pool", "") for number in range(images)]
        write_shard(directory, shard, records, _drawn)
    finish_store(directory, shards, "mine", "V1")
    return ImageStore(directory)


def _drawn(record: Record) -> bytes:
    shard, _, number = record.key.removesuffix(".png").partition("-")
    generator = np.random.default_rng([int(shard), int(number)])
    pixels = generator.integers(0, 256, (20 + 10 * int(shard), 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
