"""A pool to score, a head that counts its forward passes, and a driver to be killed; imported by workers, too."""

import io
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.models.backbones import build_backbone
from rayreid.models.embedding import Embedder
from rayreid.models.weights import save_backbone

SHARDS, IN_SHARD = 6, 40
BROKEN = 17  # the row of the image that cannot be decoded


def write_pool(folder: Path) -> None:
    """Noise of various sizes; one file is cut short. Neighbours in the index stand in different shards."""

    def read(record: Record) -> bytes:
        number = int(record.path)
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (4, 2, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((16 + number % 5, 32 + number % 7)).save(buffer, "PNG")
        return buffer.getvalue()[: -40 if number == BROKEN else None]

    for shard in range(SHARDS):
        numbers = range(shard, SHARDS * IN_SHARD, SHARDS)
        write_shard(folder, shard, [Record(f"{n:04d}.png", -1, -1, "pool", str(n)) for n in numbers], read, "header")
    finish_store(folder, SHARDS, "noise", "")


def write_proxies(folder: Path) -> tuple[Path, Path]:
    """Two networks that differ, and see images differently."""
    folder.mkdir(parents=True)
    paths = folder / "source.safetensors", folder / "target.safetensors"
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        save_backbone(path, build_backbone("vit_tiny", "patchify", (32, 16), 1), (0.4 + 0.1 * seed,) * 3, (0.5,) * 3)
    return paths


class Counting:
    """A head that notes its process and every image that it is given, in files of its process's own.

    Args:
        head: the head proper.
        notes: a folder.
        seconds: that each forward pass takes longer, so that there is time to disturb it.
    """

    def __init__(self, head, notes: Path, seconds: float):
        self.head, self.seconds = head, seconds
        self.path = notes / f"{os.getpid()}.txt"
        self.path.touch()

    def __call__(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        with self.path.open("a") as file:
            file.writelines(f"{key}\n" for key in keys)
        time.sleep(self.seconds)
        return self.head(images, keys)


def counting(build, notes: Path, seconds: float, device: torch.device) -> Counting:
    return Counting(build(device), notes, seconds)


def forwards(notes: Path) -> Counter[str]:
    """How often each image went through a head."""
    return Counter(line for path in notes.iterdir() for line in path.read_text().split())


def actors(notes: Path) -> list[int]:
    """Processes that built a head."""
    return [int(path.stem) for path in notes.iterdir()]


def plain_loop(store: ImageStore, source: Path, target: Path) -> np.ndarray:
    """The score by its formula, image by image, in one process; NaN where an image cannot be decoded."""
    embed = [Embedder(path, torch.device("cpu"), "fp32") for path in (source, target)]
    scores = np.full(len(store), np.nan)
    for row in range(len(store)):
        if row == BROKEN:
            continue
        image = ImageBatch.collate([store.image(row)])
        a, b = (one(image)[0].double().numpy() for one in embed)
        scores[row] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return scores


def artifact_in(root: Path):
    """The scores of the pool that `prepare` made under `root`."""
    from rayreid.config import Score
    from rayreid.stages import score
    from rayreid.storage.artifacts import Artifact

    pool = Artifact(root, "ingest", 1, {})
    source, target = (Artifact(root, "proxy", 1, {"role": role}) for role in ("source", "target"))
    return score.plan(pool, source, {"": target}, Score(batch_size=8, precision="fp32", max_bad_fraction=0.1), None)


def prepare(root: Path) -> None:
    """Everything that `artifact_in` stands on, complete."""
    scores = artifact_in(root)
    write_pool(scores.inputs["pool"].path)
    paths = write_proxies(root / "made")
    for role, path in zip(("source", "target"), paths, strict=True):
        scores.inputs[role].path.mkdir(parents=True)
        path.rename(scores.inputs[role].path / path.name)
    for one in scores.inputs.values():
        one.finish({})


def drive(root: Path, notes: Path, seconds: float) -> None:
    """Score, as a process of its own; `RAYREID_ROOT` is `root`."""
    from rayreid.console import Screen
    from rayreid.execution import actor_pool
    from rayreid.execution.connection import connect
    from rayreid.execution.production import produce
    from rayreid.stages import score
    from rayreid.tracking.tracker import Tracker

    notes.mkdir(exist_ok=True)
    actor_pool._CHUNK["cpu"] = (16, 16)
    head = score._Head
    score._Head = lambda *given, **named: Counting(head(*given, **named), notes, seconds)
    with connect(), Tracker(root, "killed").run("scoring") as run:
        produce(artifact_in(root), run, Screen(), {})


if __name__ == "__main__":
    drive(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
