"""Near-duplicates, hierarchical sampling and turns of target images on generated features: time and peak memory.

The features are groups of near-duplicates in clusters of uneven size, in float16, in files of as many images as shards
have. Every measurement is a process of its own: so its peak memory is its own, too. It includes the pages of these
files, which the system takes back when it needs them.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import child
import numpy as np

SHARD = 20_000  # images of a shard of 256 MiB
GROUP = 4  # images of a group of near-duplicates in the mean; a third of the images are in none
SPREAD = 0.2  # of a group's images around it, in units of its length
LOOKS = 500  # clusters of groups
WARM = 2_000  # images that everything is tried on before it is timed


def generate(folder: Path, images: int, dimensions: int, seed: int = 0) -> None:
    """Write features of a pool as float16 files, and the group of each image."""
    rng = np.random.default_rng(seed)
    looks = rng.standard_normal((LOOKS, dimensions), dtype=np.float32)
    shares = rng.gamma(0.5, size=LOOKS)
    common = rng.standard_normal(dimensions, dtype=np.float32)
    groups = images // GROUP + images // 3
    centres = common + looks[rng.choice(LOOKS, groups, p=shares / shares.sum())]
    centres += rng.standard_normal((groups, dimensions), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    of = rng.permutation(np.concatenate([np.arange(groups), rng.integers(0, images // GROUP, images)])[:images])
    np.save(folder / "groups.npy", of)
    for shard, start in enumerate(range(0, images, SHARD)):
        points = centres[of[start : start + SHARD]]
        points += SPREAD * dimensions**-0.5 * rng.standard_normal(points.shape, dtype=np.float32)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        np.save(folder / f"shard{shard:05d}.npy", points.astype(np.float16))


def pool_of(folder: Path, limit: int | None = None) -> Any:
    """Return the written features, memory-mapped."""
    from rayreid.selection.features import Features

    count = min(limit or 1 << 40, len(np.load(folder / "groups.npy", mmap_mode="r")))

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for shard, start in enumerate(range(0, count, SHARD)):
            rows = np.arange(start, min(start + SHARD, count))
            yield rows, np.load(folder / f"shard{shard:05d}.npy", mmap_mode="r")[: len(rows)]

    return Features([f"{row % 16:x}/{row:09d}.jpg" for row in range(count)], parts)


def near_duplicates(pool: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Groups of near-duplicates, and up to two images of each."""
    import torch

    from rayreid.selection.dedup import few_of_each
    from rayreid.selection.dedup import near_duplicates as grouped

    count = len(pool.keys)
    copies, sizes = np.arange(count), np.full(count, 64 * 128)
    found, facts = grouped(pool, torch.device("cpu"), 0, copies, sizes, options.similarity)
    _, removed = few_of_each(pool.keys, found, copies, sizes, 2, 0)
    return {**facts, **removed, "recall": recall(found, np.load(folder / "groups.npy")[:count])}


def recall(found: np.ndarray, planted: np.ndarray) -> float:
    """Return the share of planted pairs (each image and the next one of its group) that are in one group."""
    order = np.argsort(planted, kind="stable")
    pairs = planted[order[1:]] == planted[order[:-1]]
    return float((found[order[1:]] == found[order[:-1]])[pairs].mean())


def hierarchical(pool: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Balanced sampling from two levels of clusters."""
    import torch

    from rayreid.selection.hierarchical import hierarchical_priority

    return hierarchical_priority(pool, torch.device("cpu"), 0)[1]


def turns(pool: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Turns of target images, drawn from the pool."""
    import torch

    from rayreid.selection.features import Features, take
    from rayreid.selection.similarity import target_similarity

    rows = np.sort(np.random.default_rng(1).permutation(len(pool.keys))[: options.targets])
    theirs = take(pool, rows)
    targets = Features([f"{row:06d}.jpg" for row in range(len(rows))], lambda: iter([(np.arange(len(rows)), theirs)]))
    return target_similarity(pool, torch.device("cpu"), [targets], "round_robin")[1]


CHILDREN = {"dedup": near_duplicates, "hierarchical": hierarchical, "round_robin": turns}


def import_all() -> None:
    """What is no part of the measured memory."""
    import rayreid.selection.dedup
    import rayreid.selection.hierarchical
    import rayreid.selection.similarity  # noqa: F401


def prepare(kind: str, folder: Path, options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    import torch

    torch.set_num_threads(options.threads)
    work = CHILDREN[kind]
    work(pool_of(folder, WARM), folder, options)
    pool = pool_of(folder)

    def timed() -> dict[str, Any]:
        began = process_time()
        facts = work(pool, folder, options)
        return {"cpu": process_time() - began, **facts}

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[200_000], help="sizes of the pool")
    parser.add_argument("--only", choices=list(CHILDREN), nargs="+", default=list(CHILDREN))
    parser.add_argument("--dimensions", type=int, default=384, help="of a feature")
    parser.add_argument("--similarity", type=float, default=0.95, help="threshold of near-duplicates")
    parser.add_argument("--targets", type=int, default=13_000, help="target images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where to make the temporary folder")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.child:
        kind, folder = args.child
        import_all()
        child.measure(lambda: prepare(kind, Path(folder), args))
        return
    options = ["--similarity", str(args.similarity), "--targets", str(args.targets), "--threads", str(args.threads)]
    for images in args.images:
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            began = perf_counter()
            generate(Path(scratch), images, args.dimensions)
            print(f"{images:,} images, generated in {perf_counter() - began:.0f} s", flush=True)
            for kind in args.only:
                result = child.run(__file__, kind, Path(scratch), args.threads, *options)
                seconds, cpu, mib = (result.pop(name) for name in ("seconds", "cpu", "mib"))
                print(f"  {kind}: {seconds:.1f} s ({cpu:.1f} s of CPU time), {mib:.0f} MiB; {result}", flush=True)


if __name__ == "__main__":
    main()
