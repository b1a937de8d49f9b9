"""The stage ingest with Ray: broken images, a killed run, memory apart (that is in `benchmarks/`)."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from rayreid.config.loading import load_experiment
from rayreid.data.datasets.folder import Folder
from rayreid.data.store.index import finish_store
from rayreid.data.store.listing import deal, write_part
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.pipeline.experiment_runner import run_stage
from tiny_experiment import TINY

pytestmark = pytest.mark.ray


def make(folder: Path, count: int) -> Path:
    for number in range(count):
        path = folder / f"{number % 13:02d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 12, 3), np.uint8)).save(buffer, "JPEG")
        path.write_bytes(buffer.getvalue())
    return folder


def stores(root: Path) -> list[Path]:
    return [path.parent for path in (root / "ingest").glob("*/manifest.json")]


def test_broken_images_are_counted_and_stop_nothing(tmp_path, root, shared_ray):
    images = make(tmp_path / "images", 30)
    (images / "00" / "empty.jpg").write_bytes(b"")
    (images / "00" / "text.jpg").write_bytes(b"no image")
    (images / "00" / "cut.jpg").write_bytes((images / "01" / "00001.jpg").read_bytes()[:-40])
    (images / "00" / "list.txt").write_text("00001.jpg")
    path = tmp_path / "e.yaml"
    small = {"pool": {"dataset": "folder", "root": str(images)}, "pretrain": {**TINY["pretrain"], "batch_size": 8}}
    path.write_text(yaml.safe_dump({**TINY, **small}))
    with pytest.raises(UserError, match=r"3 of 33 images were rejected .* more than ingest\.max_rejected=0\.05"):
        run_stage(load_experiment(path), "ingest")
    pool, _ = run_stage(load_experiment(path, ["ingest.max_rejected=0.1"]), "ingest")
    manifest = json.loads((pool.path / "manifest.json").read_text())
    assert (manifest["read"], manifest["stored"]) == (33, 30)
    assert manifest["rejected"] == {"truncated": 1, "undecodable": 1, "zero-size": 1}
    assert manifest["left_out"] == {"file .txt": 1} and pool.facts["left_out"] == 1
    rejected = pq.read_table(pool.path / "rejected.parquet")
    assert set(rejected["key"].to_pylist()) == {"00/empty.jpg", "00/text.jpg", "00/cut.jpg"}
    assert pool.facts["images"] == 30 and pool.facts["fingerprint"] == ImageStore(pool.path).fingerprint


@pytest.mark.slow
def test_a_killed_ingest_is_finished_by_the_same_command(tmp_path):
    images = make(tmp_path / "images", 6000)
    plain, folder = tmp_path / "plain", Folder(str(images))
    shards = [write_part(plain, n, part, folder.read, "decode") for n, part in enumerate(deal(folder.records()))]
    whole = finish_store(plain, len(shards), "folder", "")

    path, root = tmp_path / "e.yaml", tmp_path / "outputs"
    path.write_text(yaml.safe_dump({**TINY, "pool": {"dataset": "folder", "root": str(images)}}))
    command = [sys.executable, "-m", "rayreid.cli", "ingest", str(path)]
    environment = {**os.environ, "RAYREID_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 120
    while not (parts := sorted(root.glob("ingest/*/shards/0000[0-9].parquet"))) and time.monotonic() < until:
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert parts
    written = {part: part.stat().st_mtime_ns for part in sorted(root.glob("ingest/*/shards/0000[0-9].parquet"))}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {part: part.stat().st_mtime_ns for part in written} == written  # finished shards are not touched again
    made = [store for store in map(ImageStore, stores(root)) if store.manifest["dataset"] == "folder"]
    assert [store.fingerprint for store in made] == [whole["fingerprint"]]
    assert len(made[0]) == 6000
    assert not list(made[0].directory.glob("shards/*.tmp"))
    made[0].verify()
