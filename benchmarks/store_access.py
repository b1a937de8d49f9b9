"""Reading an image store: opening it, images in random order, all images in their order; one process, warm cache."""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from pictures import random_jpegs
from timing import paired, show_table

from rayreid.data.images import UPRIGHT, decode
from rayreid.data.jpeg import decode_images
from rayreid.data.store.image_checksum import checksum_of_image
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard

SHARD = 20_000
CHUNK = 2**20
BATCH = 64


def make_store(directory: Path, count: int, jpegs: list[bytes]) -> None:
    """A pool of `count` images, which are `jpegs` over and over."""
    for shard, start in enumerate(range(0, count, SHARD)):
        numbers = range(start, min(start + SHARD, count))
        records = [Record(f"{n:09d}.jpg", -1, -1, "pool", str(n % len(jpegs))) for n in numbers]
        write_shard(directory, shard, records, lambda record: jpegs[int(record.path)], verify="header")
    finish_store(directory, -(-count // SHARD), "random", "")


def call_each(function: Callable[[int], Any], rows: Iterable[int]) -> None:
    for row in rows:
        function(row)


def decode_all(encoded: list[memoryview]) -> None:
    """Decode them in batches, as training and scoring do."""
    for start in range(0, len(encoded), BATCH):
        batch = encoded[start : start + BATCH]
        decode_images(batch, [UPRIGHT] * len(batch))


def compare_all(encoded: list[memoryview], checksums: np.ndarray) -> None:
    for row, data in enumerate(encoded):
        assert checksum_of_image(data) == checksums[row]


def copy_images(store: ImageStore) -> None:
    for row in range(len(store)):
        bytes(store.encoded(row))


def copy_files(files: list[Path]) -> None:
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(CHUNK):
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200_000, help="in the store")
    parser.add_argument("--distinct", type=int, default=500, help="different JPEGs among them")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(64, 32))
    parser.add_argument("--decodes", type=int, default=2_000, help="images of each repeat that are decoded")
    parser.add_argument("--folder", help="where the store is made for the time being (default: the temporary folder)")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        directory = Path(scratch) / "store"
        make_store(directory, args.images, random_jpegs(args.distinct, *args.size))
        measure(directory, args.decodes, args.repeats)


def measure(directory: Path, decodes: int, repeats: int) -> None:
    store = ImageStore(directory)
    held = [bytes(store.encoded(row)) for row in range(len(store))]
    rows = np.random.default_rng(0).permutation(len(store)).tolist()
    some = rows[:decodes]
    size = sum(map(len, held))
    files = sorted((directory / "shards").glob("*.arrow"))

    opening = paired(
        lambda: ImageStore(directory).image(0), lambda: pq.read_table(directory / "index.parquet"), repeats
    )
    access = paired(lambda: call_each(store.encoded, rows), lambda: call_each(held.__getitem__, rows), repeats)
    decoded = paired(lambda: call_each(store.image, some), lambda: [decode(held[row]) for row in some], repeats)
    found = [store.encoded(row) for row in some]
    checksums = np.array(list(map(checksum_of_image, found)), np.uint32)
    checked = paired(lambda: compare_all(found, checksums), lambda: decode_all(found), repeats, thread_time)
    streaming = paired(lambda: copy_images(store), lambda: copy_files(files), repeats)
    show_table(
        f"store of {len(store):,} images, {size / len(store):,.0f} bytes each; baselines: reading index.parquet; "
        "a list of bytes objects; decoding from that list; decoding without comparing; reading the shard files",
        [
            opening.row("open and first image", "ms", lambda seconds: 1000 * seconds),
            access.row("random access", "images/s per core", lambda seconds: len(rows) / seconds),
            decoded.row("random access, decoded", "images/s per core", lambda seconds: len(some) / seconds),
            checked.row("comparing checksums alone", "µs an image", lambda seconds: 1e6 * seconds / len(some)),
            streaming.row("sequential streaming", "MB/s", lambda seconds: size / 1e6 / seconds),
        ],
        ("pyarrow", "pillow", "numpy"),
    )


if __name__ == "__main__":
    main()
