"""Ingesting a folder of JPEGs against a plain loop of one process that lists, reads, decodes and appends them.

Every measurement is a process of its own: so its peak memory is its own, too. Starting Ray and MLflow is timed apart
from the work: from the first look at the folder until the artifact is complete, and logged.
"""

import argparse
import io
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from pictures import random_jpegs
from timing import Paired, in_turns, number, show_table

SUBFOLDER = 1_000  # files
BATCH = 1_024
MIB = 2**20


def make_folder(folder: Path, count: int, jpegs: list[bytes]) -> None:
    for start in range(0, count, SUBFOLDER):
        subfolder = folder / f"{start // SUBFOLDER:05d}"
        subfolder.mkdir(parents=True)
        for image in range(start, min(start + SUBFOLDER, count)):
            (subfolder / f"{image:09d}.jpg").write_bytes(jpegs[image % len(jpegs)])


def peak_mib() -> float:
    """Greatest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak * 1024 / MIB


def run_stage(images: Path, root: Path, cpus: int, began: float) -> dict[str, float]:
    """The stage `ingest`, as an experiment runs it; its driver is this process."""
    import ray
    from rich.console import Console

    from rayreid.config import Source
    from rayreid.console import Screen
    from rayreid.execution.production import produce
    from rayreid.stages.ingest import plan
    from rayreid.tracking.tracker import Tracker

    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
    )
    ray.get([ray.remote(num_cpus=1)(start_worker).remote() for _ in range(cpus)])
    run = Tracker(root, "benchmark").run("ingest")
    started, before = time.perf_counter(), peak_mib()
    artifact = produce(
        plan(root, Source(dataset="folder", root=str(images))), run, Screen(Console(file=io.StringIO())), {}
    )
    done = time.perf_counter()
    run.finish()
    peak = peak_mib()
    ray.shutdown()
    return facts(began, started, done, before, peak, artifact.facts["images"])


def start_worker() -> None:
    """What a worker process does once, before its first shard."""
    import rayreid.data.store.listing  # noqa: F401

    time.sleep(1)  # so that no worker is given two of these


def run_plain(images: Path, root: Path, cpus: int, began: float) -> dict[str, float]:
    """The plain loop."""
    import pyarrow as pa

    from rayreid.data.images import decode

    started, before = time.perf_counter(), peak_mib()
    schema = pa.schema([("key", pa.string()), ("image", pa.binary())])
    paths = sorted(os.path.join(folder, file) for folder, _, files in os.walk(images) for file in files)  # noqa: PTH118
    with pa.ipc.new_file(str(root / "images.arrow"), schema) as writer:
        for start in range(0, len(paths), BATCH):
            keys, encoded = paths[start : start + BATCH], []
            for path in keys:
                data = Path(path).read_bytes()
                decode(data)
                encoded.append(data)
            writer.write_batch(pa.record_batch([keys, encoded], schema=schema))
    return facts(began, started, time.perf_counter(), before, peak_mib(), len(paths))


def facts(began: float, started: float, done: float, before: float, peak: float, images: int) -> dict[str, float]:
    return {"start": started - began, "work": done - started, "before": before, "peak": peak, "images": images}


CHILDREN = {"stage": run_stage, "plain": run_plain}


def measured(kind: str, images: Path, scratch: Path, cpus: int) -> dict[str, float]:
    """Run one of `CHILDREN` in a fresh process and remove what it wrote."""
    root = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=scratch))
    env = {**os.environ, "RAYREID_ROOT": str(root), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("MLFLOW_TRACKING_URI", None)  # the default store, whatever else this shell is used for
    command = [sys.executable, __file__, "--child", kind, str(images), str(root), "--cpus", str(cpus)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(root)
    if done.returncode:
        sys.exit(f"{kind}: its process ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(count: int, scratch: Path, cpus: int, repeats: int, jpegs: list[bytes]) -> None:
    images = scratch / "images"
    make_folder(images, count, jpegs)
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in CHILDREN}
    kinds = list(CHILDREN)
    for repeat in range(repeats):
        for which in in_turns(repeat):
            result = measured(kinds[which], images, scratch, cpus)
            if result["images"] != count:
                sys.exit(f"{kinds[which]}: took in {result['images']} of {count} images")
            results[kinds[which]].append(result)
    shutil.rmtree(images)

    work = Paired(*([result["work"] for result in results[kind]] for kind in kinds))
    per_core = Paired([cpus * seconds for seconds in work.measured], work.baseline)
    show_table(
        f"ingest of {count:,} JPEGs, {sum(map(len, jpegs)) / len(jpegs):,.0f} bytes each, on {cpus} CPUs; "
        "baseline: a plain loop on one",
        [
            work.row("work, wall time", "s", lambda seconds: seconds),
            per_core.row("work", "images/s per core", lambda seconds: count / seconds),
            absolute(results, "start", "start-up", "s"),
            absolute(results, "before", "driver's peak memory after start-up", "MiB"),
            absolute(results, "peak", "driver's peak memory", "MiB"),
        ],
        ("ray", "mlflow", "pyarrow", "pillow"),
    )
    print()


def absolute(results: dict[str, list[dict[str, float]]], fact: str, name: str, unit: str) -> tuple[str, ...]:
    """A line without a ratio: a start-up, or the memory of libraries that a plain loop does without."""
    return (name, unit, *(number(median(result[fact] for result in part)) for part in results.values()), "", "")


def main() -> None:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000], help="of the folders, one by one")
    parser.add_argument("--distinct", type=int, default=500, help="different JPEGs among them")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(64, 32))
    parser.add_argument("--cpus", type=int, default=2, help="that Ray is given")
    parser.add_argument("--folder", help="where images and stores lie for the time being (default: temporary folder)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.child:
        kind, images, root = args.child
        print(json.dumps(CHILDREN[kind](Path(images), Path(root), args.cpus, began)))
        return
    jpegs = random_jpegs(args.distinct, *args.size)
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        for count in args.images:
            measure(count, Path(scratch), args.cpus, args.repeats, jpegs)


if __name__ == "__main__":
    main()
