"""Scores on a cluster: those of a plain loop, every image once, whatever is killed on the way."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from killed import workers_on
from rayreid.data.store.store import ImageStore
from rayreid.execution import actor_pool
from rayreid.execution.actor_pool import stream
from rayreid.execution.resources import Share
from rayreid.execution.shard_results import rows_by_shard
from rayreid.stages import score
from scoring_parts import (
    BROKEN,
    IN_SHARD,
    SHARDS,
    actors,
    artifact_in,
    counting,
    forwards,
    plain_loop,
    prepare,
    write_pool,
    write_proxies,
)

pytestmark = pytest.mark.ray

HERE = Path(__file__).resolve().parent.parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parent / "platform")])
CLUSTER = {"include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": PATHS}}, "log_to_driver": False}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A store, its two proxies, and the scores that a plain loop gives."""
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder / "store")
    proxies = write_proxies(folder / "proxies")
    store = ImageStore(folder / "store")
    return store, proxies, plain_loop(store, *proxies)


@pytest.fixture(params=[pytest.param("tasks", marks=[pytest.mark.slow, pytest.mark.thorough]), "actors"])
def small_pieces(request, monkeypatch):
    """Many work items, so that every process has some at all times; of plain tasks, or of Ray Data's actors."""
    if request.param == "actors":
        monkeypatch.setattr(actor_pool, "_FEW", 0)
    monkeypatch.setitem(actor_pool._CHUNK, "cpu", (16, 16))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")  # several nodes on a busy machine take their time


@pytest.fixture
def notes(tmp_path) -> Path:
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def collected(results, count: int) -> tuple[np.ndarray, dict[int, str]]:
    """The scores by row, each of which came once, and what could not be decoded."""
    scores, seen, broken = np.full(count, np.nan), np.zeros(count, int), {}
    for rows, values, bad in results:
        scores[rows] = values[:, 0]
        np.add.at(seen, rows, 1)
        broken |= bad
    seen[list(broken)] += 1
    assert (seen == 1).all(), f"{(seen == 0).sum()} rows never, {(seen > 1).sum()} more than once"
    return scores, broken


def check(results, pool) -> None:
    store, _, expected = pool
    scores, broken = collected(results, len(store))
    assert list(broken) == [BROKEN]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def head(pool, notes: Path | None = None, seconds: float = 0.0):
    _, (source, target), _ = pool
    build = partial(score._Head, source, {"": target}, "fp32", "auto")
    return build if notes is None else partial(counting, build, notes, seconds)


@pytest.fixture
def cluster(small_pieces, no_shared_ray):
    ray.init(num_cpus=3, address="local", **CLUSTER)
    yield
    ray.shutdown()


def test_scores_are_those_of_a_plain_loop_whatever_the_actors_batches_and_order(cluster, pool, monkeypatch):
    store, *_ = pool
    pieces = list(rows_by_shard(store).values())
    assert len(pieces) == SHARDS and {len(piece) for piece in pieces} == {IN_SHARD}
    for number, batch_size, order in [(1, 7, pieces), (3, "auto", [np.arange(len(store))[::-1]])]:
        monkeypatch.setattr(actor_pool, "scoring_actors", lambda number=number: Share(number, 1, False))
        check(stream(store.directory, order, head(pool), batch_size), pool)


def kill_when(ready, victims) -> threading.Thread:
    """In the background: as soon as `ready()`, call `victims()`."""

    def wait():
        while not ready():
            time.sleep(0.05)
        victims()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_every_image_comes_once_though_actors_are_killed(cluster, pool, notes):
    store, *_ = pool
    killed: list[int] = []

    def kill() -> None:
        for process in actors(notes):
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    killer = kill_when(lambda: sum(forwards(notes).values()) > 60, kill)
    check(stream(store.directory, list(rows_by_shard(store).values()), head(pool, notes, 0.3), 8), pool)
    killer.join(1)
    assert killed and len(actors(notes)) > len(killed)
    assert sum(forwards(notes).values()) < 2 * len(store)  # what was done was not done again


@pytest.fixture
def nodes(small_pieces, no_shared_ray):
    """A node with the driver and two others, of a CPU each; called with actors, it takes a node of one of them away."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    others = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, **{**CLUSTER, "include_dashboard": None})
    cluster.wait_for_nodes()

    def lose(actors: list[int]) -> None:
        hosts = [one for one in others if {worker.pid for worker in workers_on(one)} & set(actors)]
        cluster.remove_node(hosts[0], allow_graceful=False)

    yield lose
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.thorough
def test_every_image_comes_once_though_one_of_three_nodes_is_lost(nodes, pool, notes):
    store, *_ = pool
    lost: list[int] = []

    def lose() -> None:
        nodes(actors(notes))
        lost.append(sum(forwards(notes).values()))

    killer = kill_when(lambda: len(actors(notes)) == 3 and sum(forwards(notes).values()) > 60, lose)
    check(stream(store.directory, list(rows_by_shard(store).values()), head(pool, notes, 0.6), 8), pool)
    killer.join(30)
    assert lost and lost[0] < len(store) and len(actors(notes)) > 3
    assert sum(node["Alive"] for node in ray.nodes()) == 2


@pytest.mark.slow
def test_a_driver_that_was_killed_leaves_only_unwritten_shards_to_do(tmp_path):
    root = tmp_path / "outputs"
    root.mkdir()
    prepare(root)
    scores = artifact_in(root)
    environment = {**os.environ, "RAYREID_ROOT": str(root), "PYTHONPATH": PATHS}
    environment = {
        name: value for name, value in environment.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    }
    run = [sys.executable, str(HERE / "scoring_parts.py"), str(root)]

    def written() -> list[Path]:
        return sorted((scores.path / "scores").glob("*.parquet"))

    first = subprocess.Popen([*run, str(tmp_path / "first"), "0.3"], env=environment, start_new_session=True)
    try:
        while len(written()) < 2 and first.poll() is None:
            time.sleep(0.05)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    kept = {path: path.read_bytes() for path in written()}
    assert 2 <= len(kept) < SHARDS and not scores.complete

    subprocess.run([*run, str(tmp_path / "second"), "0"], env=environment, check=True, timeout=300)
    store = ImageStore(scores.inputs["pool"].path)
    left = [
        rows for shard, rows in rows_by_shard(store).items() if scores.path / f"scores/{shard:05d}.parquet" not in kept
    ]
    expected = set(store.keys[np.concatenate(left)]) - {store.keys[BROKEN]}
    assert forwards(tmp_path / "second") == dict.fromkeys(expected, 1)
    assert {path: path.read_bytes() for path in kept} == kept

    table = pq.read_table(scores.path / "scores").to_pandas().set_index("key")["cfs"]
    assert table.index.is_unique and len(table) == len(store)
    weights = [next(scores.inputs[role].path.glob("*.safetensors")) for role in ("source", "target")]
    np.testing.assert_allclose(table[store.keys], plain_loop(store, *weights), atol=1e-5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGKILL)  # whatever of the first cluster has outlived its driver
