"""Training is really killed, in the middle of an epoch: what the same command then makes is what it would have.

Workers, the driver with all of its Ray, and a node of a cluster. Two workers of one CPU each, float32.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

import in_process
import killed
from killed import newest_step, wait_for_step
from rayreid.config.loading import load_experiment
from rayreid.pipeline.graph import plan
from rayreid.storage.metrics_log import Journal
from rayreid.tracking.database import fix_locations
from tiny_experiment import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS_PER_EPOCH, EPOCHS = 15, 4
KILLED_AT = STEPS_PER_EPOCH + 4  # the checkpoint after which: within the second epoch


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The tiny experiment, in steps enough to be interrupted, with a checkpoint after every step."""
    pretrain = {**TINY["pretrain"], "epochs": EPOCHS, "batch_size": 8, "checkpoint_minutes": 1e-6}
    resources = {"workers": 2, "cpus_per_worker": 1, "gpu": False}
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "pretrain": pretrain, "resources": resources, "select": {"fraction": 1.0}}))
    return path


def start(file: Path, root: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "RAYREID_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    log = (root.parent / f"{root.name}.log").open("a")
    command = [sys.executable, killed.__file__, str(file), *arguments]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, root: Path, stage: str = "pretrain") -> Path:
    """Wait for its end; the artifact that it made."""
    try:
        status = process.wait(400)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        status = None
    assert status == 0, (root.parent / f"{root.name}.log").read_text()[-3000:]
    (artifact,) = root.glob(f"{stage}/*/artifact.json")
    return artifact.parent


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL to the driver and to all it started: Ray's daemons and the workers."""
    main = psutil.Process(process.pid)
    tree = [main, *main.children(recursive=True)]
    for one in tree:
        one.suspend()
    for one in tree:
        one.kill()
    psutil.wait_procs(tree, 20)
    process.wait()


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    tree = psutil.Process(process.pid).children(recursive=True)
    return [one for one in tree if "RayTrainWorker" in " ".join(one.cmdline())]


def journal(artifact: Path) -> list[dict[str, float]]:
    """Its rows, in the order in which they were written."""
    return [json.loads(line) for line in (artifact / "metrics.jsonl").read_text().splitlines()]


def steps_logged(artifact: Path) -> list[int]:
    """Of every row."""
    return [int(row["step"]) for row in journal(artifact)]


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory) -> Path:
    """The artifact of a run that nobody interrupts."""
    root = tmp_path_factory.mktemp("whole") / "root"
    artifact = finish(start(file, root), root)
    assert json.loads((artifact / "artifact.json").read_text())["facts"]["resumed"] is False
    return artifact


def assert_same(artifact: Path, whole: Path) -> None:
    weights, expected = load_file(artifact / "backbone.safetensors"), load_file(whole / "backbone.safetensors")
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
    rows, rows_expected = (
        {row["step"]: row["loss"] for row in journal(folder) if "loss" in row}  # the probe's rows have none
        for folder in (artifact, whole)
    )
    assert rows == pytest.approx(rows_expected, abs=1e-5)


@pytest.mark.thorough  # a training whose driver was killed goes on in `test_log_first_command`, too
def test_after_the_driver_s_death_and_with_a_damaged_checkpoint_the_same_command_goes_on(file, whole, tmp_path):
    """In outputs that were moved, from the checkpoint before the damaged one."""
    first, root = tmp_path / "first", tmp_path / "root"
    process = start(file, first)
    wait_for_step(first, KILLED_AT)
    kill_tree(process)
    assert not list(first.glob("pretrain/*/artifact.json"))
    last = newest_step(first)
    assert KILLED_AT <= last < EPOCHS * STEPS_PER_EPOCH
    first.rename(root)
    fix_locations(root)  # as `rayreid doctor --fix-locations` does
    (path,) = root.glob(f"pretrain/*/checkpoints/{last:08d}.pt")
    path.write_bytes(path.read_bytes()[:-1000])
    last -= 1
    logged = len(steps_logged(next(root.glob("pretrain/*"))))
    artifact = finish(start(file, root), root)
    assert json.loads((artifact / "artifact.json").read_text())["facts"]["resumed"] is True
    assert min(steps_logged(artifact)[logged:]) >= last
    assert_same(artifact, whole)


def test_a_worker_that_is_killed_is_replaced_and_the_training_goes_on(file, whole, tmp_path):
    root = tmp_path / "root"
    process = start(file, root)
    wait_for_step(root, KILLED_AT)
    victims = workers_of(process)
    assert len(victims) == 2
    victims[1].kill()
    artifact = finish(process, root)
    assert_same(artifact, whole)
    assert (
        json.loads((artifact / "artifact.json").read_text())["facts"]["resumed"] is False
    )  # by Ray, not by a new command


@pytest.mark.thorough
def test_of_three_nodes_one_may_be_lost_with_its_worker(file, whole, tmp_path):
    root = tmp_path / "root"
    artifact = finish(start(file, root, str(KILLED_AT)), root)
    (lost,) = re.findall(r"node lost after step (\d+)", (tmp_path / "root.log").read_text())
    assert KILLED_AT <= int(lost) < EPOCHS * STEPS_PER_EPOCH
    assert_same(artifact, whole)


@pytest.mark.thorough
def test_a_contrast_on_two_workers_whose_driver_was_killed_ends_like_one_in_a_single_process(tmp_path, monkeypatch):
    """MoBY, batch norm in the stem: all workers' statistics and keys, and a queue that wraps around more than once."""
    root, steps, queue = tmp_path / "root", 15, 44
    pretrain = {"method": "moby", "epochs": 2, "batch_size": 8, "queue": queue, "hidden_dim": 32, "out_dim": 16}
    pretrain |= {"precision": "fp32", "checkpoint_minutes": 1e-6, "keep_every_epochs": 1, "lr": 1e-3}
    resources = {"workers": 2, "cpus_per_worker": 1, "gpu": False}
    backbone = {**TINY["backbone"], "stem": "ics"}
    changes = {"backbone": backbone, "pretrain": pretrain, "resources": resources, "select": {"fraction": 1.0}}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**TINY, **changes}))
    process = start(file, root)
    wait_for_step(root, steps + 4)
    kill_tree(process)
    assert newest_step(root) < 2 * steps and not list(root.glob("pretrain/*/artifact.json"))
    artifact = finish(start(file, root), root)
    facts = json.loads((artifact / "artifact.json").read_text())["facts"]
    assert facts["resumed"] is True and facts["workers"] == 2

    in_process.train_here(monkeypatch)
    graph = plan(load_experiment(file), tmp_path / "single")
    for role in ("pool", "target"):
        graph[role].path.parent.mkdir(parents=True, exist_ok=True)
        graph[role].path.symlink_to(root / graph[role].path.relative_to(tmp_path / "single"))
    work = in_process.work_on(graph["weights"])
    assert graph["weights"].job(work)["steps"] == 2 * steps
    found, expected = (
        torch.load(folder / "epochs" / "0002.pt", weights_only=True)["method"] for folder in (artifact, work.folder)
    )
    for name in ("queue1", "queue2"):
        assert int(found[f"{name}.position"]) == int(expected[f"{name}.position"]) == 2 * steps * 8 % queue
        # In float32 AdamW makes of other sums other weights: after 30 steps at 1e-3 keys were seen to differ by 0.02,
        # where those of the two queues do by 0.18 on average. (A logged loss is that of the first worker's share.)
        torch.testing.assert_close(found[f"{name}.keys"], expected[f"{name}.keys"], rtol=0, atol=0.05)


@pytest.mark.thorough
def test_a_fine_tuning_whose_driver_was_killed_ends_like_one_in_a_single_process(tmp_path, monkeypatch):
    """With the weights of its last epoch and of its best, and the same rows."""
    root, steps = tmp_path / "root", 15
    finetune = {"epochs": EPOCHS, "identities": 2, "instances": 2, "precision": "fp32", "evaluate_every": 1}
    finetune |= {"checkpoint_minutes": 1e-6, "lr": 0.01}
    resources = {"workers": 1, "cpus_per_worker": 1, "gpu": False}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**TINY, "pretrain": "none", "finetune": finetune, "resources": resources}))
    process = start(file, root)
    wait_for_step(root, steps + 4)
    kill_tree(process)
    assert newest_step(root) < 2 * steps and not list(root.glob("finetune/*/artifact.json"))
    artifact = finish(start(file, root), root, "finetune")
    assert json.loads((artifact / "artifact.json").read_text())["facts"]["resumed"] is True

    in_process.train_here(monkeypatch)
    graph = plan(load_experiment(file), tmp_path / "single")
    graph["target"].path.parent.mkdir(parents=True)
    graph["target"].path.symlink_to(next(root.glob("ingest/*")))
    work = in_process.work_on(graph["model"])
    assert graph["model"].job(work)["steps"] == EPOCHS * steps
    for name in ("model.safetensors", "best.safetensors"):
        # Other numbers of threads round otherwise; at this rate a step moves weights by far more than 1e-5.
        torch.testing.assert_close(load_file(artifact / name), load_file(work.folder / name), rtol=0, atol=1e-5)
    found, expected = (
        {row["step"]: (row["loss"], row.get("eval_mAP")) for row in Journal(folder / "metrics.jsonl").history()}
        for folder in (artifact, work.folder)
    )
    assert found == {step: pytest.approx(values, abs=2e-4) for step, values in expected.items()}
