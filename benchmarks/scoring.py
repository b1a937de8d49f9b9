"""Scoring a pool: the Ray pipeline against a plain torch loop, the cost of the second proxy, the driver's memory.

The pipeline and the loop are processes of their own, in turns, with the same images, proxies, batches and threads.
Their rates are those of the time in which all actors work: from the last one's first batch to the first one's last.
`--alone` leaves Ray out, for a machine that has none: it measures what one actor does on this machine's device, and
where its ceiling is.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from pictures import random_jpegs
from store_access import make_store
from timing import Paired, in_turns, number, paired, show_table

from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore
from rayreid.models.backbones import build_backbone
from rayreid.models.embedding import AUTO_BATCH, Embedder, Pass
from rayreid.models.weights import save_backbone
from rayreid.selection.cfs import cfs

PROXIES = ("source", "target")
NAMES = {"source": "backbone.safetensors", "target": "model.safetensors"}


def write_proxies(root: Path, backbone: str, size: tuple[int, int]) -> None:
    for seed, role in enumerate(PROXIES):
        torch.manual_seed(seed)
        (root / role).mkdir(parents=True)
        network = build_backbone(backbone, "patchify", size)
        save_backbone(root / role / NAMES[role], network, (0.5,) * 3, (0.5,) * 3)


class Scorer:
    """Both proxies on a batch, as the stage computes it."""

    def __init__(self, root: Path, precision: str, device: torch.device):
        self.embed = [Embedder(root / role / NAMES[role], device, precision) for role in PROXIES]

    def __call__(self, images: ImageBatch, keys: list[str]) -> np.ndarray:
        images = images.to(self.embed[0].device)
        return cfs(*(embed(images) for embed in self.embed), keys).cpu().numpy()


class Timed:
    """Notes when each batch ended, and how many images it had, in a file of its process's own."""

    def __init__(self, head: Callable[..., Any], folder: Path):
        self.head, self.file = head, (folder / f"{os.getpid()}.txt").open("a")

    def __call__(self, images: ImageBatch, keys: list[str]) -> np.ndarray:
        values = self.head(images, keys)
        self.file.write(f"{time.time()} {len(keys)}\n")
        self.file.flush()
        return values


def timed(root: Path, precision: str, folder: Path, device: torch.device) -> Timed:
    return Timed(Scorer(root, precision, device), folder)


def steady(folder: Path) -> tuple[float, float]:
    """Images/s while all processes were at work, and when the last of them had done its first batch.

    Of a batch that was under way at either end of that time, the part that fell into it counts.
    """
    notes = [np.loadtxt(path, ndmin=2) for path in folder.iterdir()]
    begin, end = max(ends[0, 0] for ends in notes), min(ends[-1, 0] for ends in notes)
    images = sum(np.ptp(np.interp((begin, end), ends[:, 0], ends[:, 1].cumsum())) for ends in notes)
    return images / (end - begin), begin


def start_ray(cpus: int) -> None:
    import ray

    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )


def run_pipeline(root: Path, notes: Path, args: argparse.Namespace) -> dict[str, float]:
    """The stage's forward passes on Ray Data."""
    import scoring  # by its name, under which the actors know it, too

    from rayreid.execution import actor_pool

    began = time.time()
    start_ray(args.cpus)
    store = ImageStore(root / "store")
    actor_pool._CHUNK["cpu"] = (args.item, args.item)
    build = partial(scoring.timed, root, args.precision, notes)
    results = actor_pool.stream(store.directory, [np.arange(len(store))], build, args.batch)
    scored = sum(len(rows) for rows, _, _ in results)
    rate, running = steady(notes)
    return {"rate": rate, "start": running - began, "images": scored}


def run_loop(root: Path, notes: Path, args: argparse.Namespace) -> dict[str, float]:
    """A plain loop in one process: decode, forward, next."""
    began = time.time()
    torch.set_num_threads(args.cpus)
    store = ImageStore(root / "store")
    head = timed(root, args.precision, notes, torch.device("cpu"))
    for start in range(0, len(store), args.batch):
        rows = range(start, min(start + args.batch, len(store)))
        head(ImageBatch.collate([store.image(row) for row in rows]), store.keys[rows.start : rows.stop].tolist())
    rate, running = steady(notes)
    return {"rate": rate, "start": running - began, "images": len(store)}


class Nothing:
    """A trivial head, for what everything but the proxies costs."""

    def __call__(self, images: ImageBatch, keys: list[str]) -> np.ndarray:
        return np.full((len(keys), 1), 0.5, np.float32)


def nothing(*arguments: Any) -> Nothing:
    return Nothing()


def run_stage(root: Path, notes: Path, args: argparse.Namespace) -> dict[str, float]:
    """The whole stage with a trivial head; its driver is this process."""
    import resource

    import ray
    import scoring
    from rich.console import Console

    from rayreid.config import Score
    from rayreid.console import Screen
    from rayreid.execution.production import produce
    from rayreid.stages import score
    from rayreid.storage.artifacts import Artifact
    from rayreid.tracking.tracker import Tracker

    start_ray(args.cpus)
    score._Head = scoring.nothing  # type: ignore[assignment, misc]
    pool, source, target = (Artifact(root, stage, 1, {}) for stage in ("store", *PROXIES))
    for artifact in (pool, source, target):
        artifact.finish({})
    run = Tracker(root, "benchmark").run("score")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.time()
    scores = score.plan(pool, source, {"": target}, Score(), None)
    produce(scores, run, Screen(Console(file=open(os.devnull, "w"))), {})  # noqa: PTH123, SIM115
    seconds = time.time() - began
    run.finish()
    ray.shutdown()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"before": before, "peak": peak, "seconds": seconds, "images": scores.facts["images"]}


CHILDREN = {"pipeline": run_pipeline, "loop": run_loop, "stage": run_stage}


def measured(kind: str, root: Path, arguments: Sequence[str]) -> dict[str, float]:
    """One of `CHILDREN` in a fresh process, with these arguments of the script."""
    with tempfile.TemporaryDirectory(prefix=f"{kind}-", dir=root) as notes:
        env = {**os.environ, "RAYREID_ROOT": str(root), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        env.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, __file__, *arguments, "--child", kind, str(root), notes]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{kind}: its process ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare_rates(root: Path, args: argparse.Namespace) -> None:
    kinds = ("pipeline", "loop")
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for repeat in range(args.repeats):
        for which in in_turns(repeat):
            results[kinds[which]].append(measured(kinds[which], root, sys.argv[1:]))
    per_image = Paired(*([1 / result["rate"] for result in results[kind]] for kind in kinds))
    starts = [number(median(result["start"] for result in results[kind])) for kind in kinds]
    show_table(
        f"scoring {args.images:,} images of {args.size[0]} x {args.size[1]} with two {args.backbone}, "
        f"{args.precision}, batches of {args.batch}, {args.cpus} CPUs; baseline: a plain loop with as many threads",
        [per_image.row("once running", "images/s", lambda seconds: 1 / seconds), ("start-up", "s", *starts, "", "")],
        ("torch", "ray"),
    )


def compare_proxies(root: Path, args: argparse.Namespace) -> None:
    """One pass with both proxies against the forward passes alone, on tensors that are ready."""
    torch.set_num_threads(args.cpus)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store, scorer = ImageStore(root / "store"), Scorer(root, args.precision, device)
    images = ImageBatch.collate([store.image(row) for row in range(args.batch)])
    ready = [embed.transform(images.to(device)) for embed in scorer.embed]

    def forwards() -> None:
        with torch.inference_mode():
            for embed, tensor in zip(scorer.embed, ready, strict=True):
                with torch.autocast(device.type, torch.bfloat16, enabled=embed.precision == "bf16"):
                    embed.backbone(tensor)
        if device.type == "cuda":
            torch.cuda.synchronize()

    times = paired(lambda: scorer(images, store.keys[: args.batch].tolist()), forwards, args.repeats + 2)
    show_table(
        f"two proxies in one pass over {args.batch} decoded images; baseline: their two forward passes alone",
        [times.row("a batch", "ms", lambda seconds: 1000 * seconds)],
        ("torch",),
    )


def compare_memory(root: Path, args: argparse.Namespace, jpegs: list[bytes]) -> None:
    """The stage with a trivial head on pools of several sizes."""
    from rayreid.storage.artifacts import Artifact

    print("\nthe stage with a trivial head: its driver's peak memory, before it begins and in all; its time")
    for count in args.pools:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            here = Path(folder)
            make_store(Artifact(here, "store", 1, {}).path, count, jpegs)
            for role in PROXIES:
                Artifact(here, role, 1, {}).path.mkdir(parents=True)
                (Artifact(here, role, 1, {}).path / NAMES[role]).touch()
            facts = measured("stage", here, sys.argv[1:])
        print(
            f"{facts['images']:>9,.0f} images: {facts['before']:.0f} MiB, {facts['peak']:.0f} MiB; "
            f"{facts['seconds']:.1f} s, {facts['images'] / facts['seconds']:,.0f} images/s"
        )


def measure_alone(root: Path, args: argparse.Namespace) -> None:
    """What one actor does on this device: the whole, and each part by itself."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store, scorer = ImageStore(root / "store"), Scorer(root, args.precision, device)
    rows = np.arange(len(store))
    size = AUTO_BATCH[device.type] if args.batch == "auto" else args.batch
    busy = [0.0]

    def noting(images: ImageBatch, keys: list[str]) -> np.ndarray:
        began = time.perf_counter()
        values = scorer(images, keys)  # gives numbers on the CPU: the device is done with it
        busy[0] += time.perf_counter() - began
        return values

    run = Pass(store, noting, size, device, args.cpus)
    run(rows[: 4 * size])
    busy[0] = 0.0
    began = time.perf_counter()
    run(rows)
    whole = time.perf_counter() - began
    print(f"{device}, {args.cpus} decoding threads, batches of {run.batch_size}, {scorer.embed[0].precision}")
    waits = 100 * (1 - busy[0] / whole)
    print(f"the whole: {len(rows) / whole:,.0f} images/s; the device waits {waits:.1f} % of the time")
    began = time.perf_counter()
    Pass(store, lambda images, keys: np.zeros(len(keys)), size, device, args.cpus)(rows)
    print(f"decoding alone: {len(rows) / (time.perf_counter() - began):,.0f} images/s")
    images = ImageBatch.collate([store.image(row) for row in range(size)])
    there = images.to(device)
    keys = store.keys[:size].tolist()
    for name, part in {
        "transfer": lambda: images.to(device),
        "transforms and forwards": lambda: scorer(there, keys),
    }.items():
        part()
        began = time.perf_counter()
        for _ in range(20):
            part()
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(f"{name} alone: {20 * size / (time.perf_counter() - began):,.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_024, help="of the pool that is scored")
    parser.add_argument("--distinct", type=int, default=500, help="different JPEGs among them")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(256, 128), help="of the JPEGs"
    )
    parser.add_argument("--backbone", default="vit_small")
    parser.add_argument(
        "--input", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(256, 128), help="of the ViT"
    )
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", type=int, default=AUTO_BATCH["cpu"])
    parser.add_argument("--item", type=int, default=128, help="images per work item of the pipeline")
    parser.add_argument("--cpus", type=int, default=2, help="that Ray, or the loop, is given")
    parser.add_argument("--pools", type=int, nargs="*", default=[20_000, 200_000], help="sizes for the driver's memory")
    parser.add_argument("--folder", help="where stores lie for the time being (default: the temporary folder)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("rates", "proxies", "memory"), help="one of the three measurements")
    parser.add_argument("--alone", action="store_true", help="one actor's work on this device, without Ray")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, root, notes = args.child
        print(json.dumps(CHILDREN[kind](Path(root), Path(notes), args)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        root = Path(scratch)
        make_store(root / "store", args.images, random_jpegs(args.distinct, *args.size))
        write_proxies(root, args.backbone, tuple(args.input))
        if args.alone:
            measure_alone(root, args)
            return
        if args.only in (None, "rates"):
            compare_rates(root, args)
        if args.only in (None, "proxies"):
            compare_proxies(root, args)
        if args.only in (None, "memory"):
            compare_memory(root, args, random_jpegs(args.distinct, 64, 32))


if __name__ == "__main__":
    main()
