"""Images of mixed sizes against images of one size with as many pixels in all, wherever images are read.

Real person crops are 60 to 1,400 pixels high. Heights are log-normal here (median and spread of LUPerson's kind); the
baseline is the same work on as many images of 256 x 128. A ratio of 1 means that cost follows the pixels. Times are
measured in turns in one process, on one thread; each peak of memory in a process of its own.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import child
import torch
from pictures import mixed_jpegs, random_jpegs
from store_access import make_store
from timing import Paired, number, paired, show_table

from rayreid.data.augment.augment import MultiCrop
from rayreid.data.augment.reid_transforms import ReIDTest, ReIDTrain
from rayreid.data.batch import ImageBatch
from rayreid.data.images import decode
from rayreid.data.store.store import ImageStore, Record, write_shard

HEIGHT, WIDTH = 256, 128
HALF = (0.5, 0.5, 0.5)

Work = Callable[[], Any]


def pictures(kind: str, count: int) -> list[bytes]:
    """Return JPEGs of mixed sizes or of one size, with (nearly) as many pixels in all."""
    return mixed_jpegs(count, HEIGHT * WIDTH) if kind == "mixed" else random_jpegs(count, HEIGHT, WIDTH)


def works(kind: str, count: int, folder: Path) -> dict[str, Work]:
    """Return the works that are measured, by name, on pictures of a kind."""
    jpegs = pictures(kind, count)
    images = [decode(data) for data in jpegs]
    keys = [f"{position}.jpg" for position in range(count)]
    make_store(folder / kind, count, jpegs)
    store, batch = ImageStore(folder / kind), ImageBatch.collate(images)
    rows = range(count)
    return {
        "ingest of a shard, every image decoded": partial(ingest, folder / f"{kind}-written", jpegs),
        "reading and decoding from a store": lambda: store.images(rows),
        "collating decoded images": lambda: ImageBatch.collate(images),
        "crops of DINO at the recipe's size": partial(
            MultiCrop((HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2), 8), batch, keys, 0, 0
        ),
        "transform of fine-tuning": partial(ReIDTrain((HEIGHT, WIDTH), HALF, HALF), batch, keys, 0, 0),
        "transform of scoring and evaluation": partial(ReIDTest((HEIGHT, WIDTH), HALF, HALF), batch),
    }


def ingest(folder: Path, jpegs: Sequence[bytes]) -> None:
    """Write one shard anew."""
    (folder / "shards" / "00000.parquet").unlink(missing_ok=True)
    records = [Record(f"{position}.jpg", -1, -1, "pool", str(position)) for position in range(len(jpegs))]
    write_shard(folder, 0, records, lambda record: jpegs[int(record.path)])


def prepare(kind: str, folder: Path, name: str, count: int) -> Callable[[], dict[str, Any]]:
    """Prepare one work in a process of its own, whose peak of memory is then measured."""
    torch.set_num_threads(1)
    work = works(kind, count, folder)[name]

    def timed() -> dict[str, Any]:
        work()
        return {}

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="of a batch, and of a shard")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child", nargs=3, metavar=("KIND", "FOLDER", "WORK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, folder, name = args.child
        child.measure(partial(prepare, kind, Path(folder), name, args.images))
        return

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        mixed, uniform = (works(kind, args.images, Path(scratch)) for kind in ("mixed", "uniform"))
        rows = [
            paired(mixed[name], uniform[name], args.repeats).row(
                name, "images/s", lambda seconds: args.images / seconds
            )
            for name in mixed
        ]
        show_table(
            f"{args.images} images of mixed sizes, {HEIGHT * WIDTH:,} pixels on average; baseline: as many of "
            f"{HEIGHT} x {WIDTH}; one thread",
            rows,
            ("torch", "pillow", "numpy", "numba"),
        )
    print("\npeak of memory in a process of its own, above its imports: mixed, uniform, ratio")
    for name in mixed:
        peaks = [peak(kind, name, args.images) for kind in ("mixed", "uniform")]
        ratio = Paired(peaks[:1], peaks[1:]).ratios[0]
        print(f"{name:<42}{number(peaks[0]):>8} MiB{number(peaks[1]):>8} MiB  {ratio:.2f}")


def peak(kind: str, name: str, count: int) -> float:
    """Measure one work's peak of memory in MiB."""
    with tempfile.TemporaryDirectory() as scratch:
        return child.run(__file__, kind, Path(scratch), 1, name, "--images", str(count))["mib"]


if __name__ == "__main__":
    main()
