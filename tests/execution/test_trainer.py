"""How a training starts, fails and goes on: the part of a worker and of the driver, mostly without Ray."""

import errno
import io
import json
import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray.train.torch
import torch
from PIL import Image
from ray.exceptions import ActorDiedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from rich.console import Console
from torch import nn

from rayreid.config import Backbone, Pretrain, Resources
from rayreid.console import Screen
from rayreid.data.sampling.batch_plans import ShufflePlan
from rayreid.data.store.store import Record, finish_store, write_shard
from rayreid.disk_faults import StorageError
from rayreid.errors import UserError
from rayreid.execution import delivery, failures, trainer
from rayreid.execution.machine import machine_name
from rayreid.execution.production import StageContext
from rayreid.execution.resources import Share
from rayreid.execution.sealed import Sealed
from rayreid.execution.trainer import Training, fit
from rayreid.models.weights import load_backbone
from rayreid.stages import pretrain
from rayreid.stages.training import initial_weights
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import SCRATCH
from rayreid.storage.metrics_log import Journal
from recorded_run import RecordedRun

IMAGES, BATCH, EPOCHS = 8, 4, 2
STEPS = EPOCHS * IMAGES // BATCH


class Brightness(nn.Module):
    """A method with one parameter."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def build_optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def set_schedules(self, optimizer, step):
        return {"lr": 0.1}

    def losses(self, batch):
        return {"loss": (self.level - batch.pixels.float().mean() / 255).square()}

    def before_update(self, step):
        return {}

    def after_update(self, step):
        pass


class Undealt(ShufflePlan):
    """All images in one step, which every worker takes whole: so each of them alone can play any rank."""

    def __init__(self):
        super().__init__(np.arange(IMAGES), IMAGES, seed=0)

    def batch(self, epoch, step, rank=0, world=1):
        return super().batch(epoch, step)


def build(device):
    return Brightness(), lambda images, keys, epoch, rows: images


def refuse(device):
    raise UserError("x.pth: no weights")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Makes a store of eight images; of the one with the number `broken` the file is cut short.

    With `people` they are the train split of a target, of so many people.
    """

    def make(broken: int | None = None, people: int | None = None) -> Path:
        folder = tmp_path_factory.mktemp("store") / "store"
        write_shard(
            folder,
            0,
            [
                Record(f"{n}.jpg", n % people if people else n, -1, "train" if people else "pool", str(n))
                for n in range(IMAGES)
            ],
            partial(read, broken),
            "header",
        )
        finish_store(folder, 1, "grey", "1")
        return folder

    def read(broken: int | None, record: Record) -> bytes:
        stream = io.BytesIO()
        noise = np.random.default_rng(int(record.path)).integers(0, 256, (64, 32, 3), np.uint8)
        Image.fromarray(noise).save(stream, "JPEG")
        data = stream.getvalue()
        return data[: len(data) // 2] if int(record.path) == broken else data

    return make


@pytest.fixture
def work(tmp_path):
    artifact = Artifact(tmp_path, "pretrain", 1, {})
    artifact.path.mkdir(parents=True)
    return StageContext(artifact, artifact.path, RecordedRun(), Screen(Console(file=io.StringIO(), width=200)))


@pytest.fixture
def training(work, store):
    return Training(
        folder=work.folder,
        store=store(),
        plan=ShufflePlan(np.arange(IMAGES), BATCH, seed=0),
        build=build,
        save=lambda method: (work.folder / "saved").write_text(str(method.level.item())),
        epochs=EPOCHS,
        accumulate=1,
        precision="fp32",
        seed=0,
        checkpoint_minutes=10.0,
        keep_checkpoints=2,
        keep_every_epochs=1,
    )


@pytest.fixture
def workers(monkeypatch):
    """In place of Ray: `fit` runs the workers whose ranks stand in this list, one after the other, in this process.

    As with Ray, an error ends the group, and all are started again as often as `max_failures` says.
    """
    monkeypatch.setattr(trainer, "awaited_share", lambda resources: Share(2, 1, False))
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    ranks: list[int] = [0]

    class Trainer:
        def __init__(self, loop, train_loop_config, scaling_config, run_config):
            self.loop = partial(loop, train_loop_config)
            self.left = run_config.failure_config.max_failures

        def fit(self):
            for rank in ranks:
                monkeypatch.setattr("rayreid.training.parallel.rank", lambda rank=rank: rank)
                try:
                    self.loop()
                except Exception as error:
                    if self.left == 0:
                        raise WorkerGroupError(str(error), {rank: error}) from None
                    self.left -= 1
                    return self.fit()
            return None

    monkeypatch.setattr(trainer, "Trainer", Trainer)
    return ranks


def messages(folder: Path) -> dict[str, str]:
    return {path.name: json.loads(path.read_text())["message"] for path in folder.glob("failure*")}


# Faults that come again


@pytest.mark.parametrize("max_failures", [0, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_on_one_worker_ends_the_training_with_its_message(work, training, workers, store, rank, max_failures):
    workers[:] = [rank]
    training = replace(training, store=store(broken=5), plan=Undealt())
    with pytest.raises(UserError, match=r"'5\.jpg' is truncated") as caught:
        fit(work, training, Resources(max_failures=max_failures))
    assert messages(work.folder) == {f"failure-{rank}.json": str(caught.value)}
    assert not (work.folder / "saved").exists()


def test_the_worker_raises_so_that_ray_stops_those_that_wait_for_it(training, workers):
    with pytest.raises(UserError, match=r"x\.pth"):
        trainer._worker({"training": Sealed(replace(training, build=refuse)), "cpus": 1, "gpu": False, "fence": None})


def exhausted(device):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def test_a_gpu_that_is_too_small_ends_the_stage_with_what_helps(work, training, workers):
    with pytest.raises(UserError, match=r"Tried to allocate 9 GiB.*raise accumulate"):
        fit(work, replace(training, build=exhausted), Resources())


def test_workers_that_are_started_again_after_it_do_nothing(training, workers):
    (training.folder / "failure-1.json").write_text(json.dumps({"message": "5.jpg is broken"}))
    for _ in workers:
        trainer._worker({"training": Sealed(training), "cpus": 1, "gpu": False, "fence": None})
    assert [path.name for path in training.folder.iterdir()] == ["failure-1.json"]


def test_a_fault_that_was_mended_is_forgotten(work, training, workers):
    with pytest.raises(UserError):
        fit(work, replace(training, build=refuse), Resources())
    assert messages(work.folder)
    assert fit(work, training, Resources())["steps"] == STEPS
    assert not messages(work.folder)


def test_a_loss_that_is_not_finite_ends_it_too(work, training, workers):
    def poisoned(device):
        return Brightness(), lambda images, keys, epoch, rows: replace(images, pixels=images.pixels * torch.nan)

    with pytest.raises(UserError, match=r"the loss is nan at step 0 .*\.jpg; all 4 keys: .*failure-0\.json"):
        fit(work, replace(training, build=poisoned), Resources())
    keys = json.loads((work.folder / "failure-0.json").read_text())["keys"]
    assert len(set(keys)) == BATCH and all(key.endswith(".jpg") for key in keys)


def test_any_other_fault_is_tried_again(work, training, workers):
    tries = []

    def broken(device):
        tries.append(device)
        raise MemoryError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        fit(work, replace(training, build=broken), Resources(max_failures=2))
    assert len(tries) == 3 and not messages(work.folder)


def full(device):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_not_a_lost_worker(work, training, workers):
    tries = []

    def build(device):
        tries.append(device)
        full(device)

    with pytest.raises(UserError, match=r"no room is left on this disk .*: make room, and run the same command again"):
        fit(work, replace(training, build=build), Resources(max_failures=3))
    assert len(tries) == 1
    assert fit(work, training, Resources())["steps"] == STEPS


def test_a_checkpoint_that_does_not_fit_names_its_folder_and_leaves_nothing(work, training, workers, monkeypatch):
    def save(state, stream):
        stream.write(b"half")
        full(None)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match=f"{work.folder}/checkpoints: no room is left"):
        fit(work, training, Resources(max_failures=3))
    assert list((work.folder / "checkpoints").iterdir()) == []


def test_a_disk_too_full_for_the_reason_prevents_a_restart_all_the_same(work, training, workers, monkeypatch):
    write, tries = trainer.write_atomically, []

    def build(device):
        tries.append(device)
        full(device)

    def refuse(path, content):
        if path.name.startswith("failure"):
            full(None)
        write(path, content)

    monkeypatch.setattr(failures, "write_atomically", refuse)
    with pytest.raises(StorageError, match=f"{work.folder}: no room is left"):
        fit(work, replace(training, build=build), Resources(max_failures=3))
    assert len(tries) == 1


def test_a_disk_that_is_too_full_for_ray_s_own_records_is_named(work, training, workers, monkeypatch):
    def fail(self):
        raise ControllerError(OSError(errno.ENOSPC, "No space left on device", str(work.folder / "ray" / "marker")))

    monkeypatch.setattr(trainer.Trainer, "fit", fail)
    with pytest.raises(StorageError, match=f"{work.folder}/ray: no room is left"):
        fit(work, training, Resources(max_failures=3))


def test_a_controller_that_is_lost_is_one_line_that_says_how_to_go_on(work, training, workers, monkeypatch):
    def lost(self):
        raise ActorDiedError

    monkeypatch.setattr(trainer.Trainer, "fit", lost)
    with pytest.raises(UserError, match=r"Ray lost the process that leads.*run the same command again") as caught:
        fit(work, training, Resources(max_failures=3))
    assert "\n" not in str(caught.value)


def test_a_folder_that_vanishes_during_a_training_is_named(work, training, workers, monkeypatch):
    def save(state, stream):
        stream.write(b"half")
        shutil.rmtree(work.folder)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(StorageError, match=f"{work.folder}: this folder has vanished while it was in use"):
        fit(work, training, Resources(max_failures=0))
    assert not work.folder.exists()


# Going on


def test_after_an_interruption_past_its_end_only_the_end_is_repeated(work, training, workers):
    assert fit(work, training, Resources())["steps"] == STEPS
    (work.folder / "saved").unlink()
    rows = Journal(work.folder / "metrics.jsonl").read()[0]
    work.run.figures.clear()
    facts = fit(work, training, Resources())
    assert Journal(work.folder / "metrics.jsonl").read()[0] == rows
    assert float((work.folder / "saved").read_text()) != 0
    assert work.run.figures == ["figures/loss.png"] and facts["final_loss"] == rows[-1]["loss"]


def test_a_tracking_server_that_is_away_costs_no_training(work, training, workers):
    work.run.away = True
    assert fit(work, training, Resources())["steps"] == STEPS
    assert work.screen.console.file.getvalue().count("metrics cannot be logged for now") == 1
    assert work.run.owed == [work.folder / "metrics.jsonl"]
    work.run.away = False
    fit(work, training, Resources())
    assert work.run.rows[-1]["step"] == STEPS - 1 and len(work.run.owed) == 1


def test_a_tracking_server_that_is_away_hides_no_fault(work, training, workers):
    def interrupted(device):
        (work.folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1, "time": 1.0}\n')
        raise KeyboardInterrupt

    work.run.away = True
    with pytest.raises(KeyboardInterrupt):
        fit(work, replace(training, build=interrupted), Resources())


# What the user sees


def test_a_warning_is_shown_and_tagged_though_the_tracking_server_is_away(work, training, workers):
    seen = []

    def watch(row):
        seen.append(row["step"])
        return "it looks [collapsed]" if row["step"] == STEPS - 1 else None

    work.run.away = True
    fit(work, training, Resources(), watch)
    assert work.screen.console.file.getvalue().count("warning: it looks [collapsed]") == 1
    assert seen == [1, 3] and "warning" not in work.run.tagged  # the ends of the epochs
    work.run.away = False
    fit(work, training, Resources(), watch)
    assert work.run.tagged["warning"] == "it looks [collapsed]"


def test_rows_of_an_earlier_process_reach_the_watch_but_not_the_bar_s_clock(work):
    journal = Journal(work.folder / "metrics.jsonl")
    row = {"epoch": 1.0, "loss": 2.0, "images_per_second": 8.0, "wait": 0.0}
    journal.append({"step": 9, **row})
    seen, shown = [], []
    bar = type("Shown", (), {"to": lambda self, done, note: shown.append(done)})()
    delivered = delivery.Delivery(work, bar, lambda row: seen.append(row["step"]))
    delivered._pass_on()
    assert (seen, shown) == ([9], [])
    journal.append({"step": 19, **row})
    delivered._pass_on()
    assert (seen, shown) == ([9, 19], [20])


def test_the_note_beside_the_bar_says_pace_and_waiting():
    row = {"epoch": 1.25, "loss": 2.0, "images_per_second": 812.4, "wait": 0.034}
    assert delivery._note(row) == "epoch 1.2  loss 2.000  812 images/s, 3 % waiting"


# What is kept


def test_epochs_that_are_kept_lie_apart_from_what_completion_removes(work, training, workers):
    fit(work, replace(training, keep_checkpoints=1), Resources())
    assert sorted(path.name for path in (work.folder / "epochs").glob("*.pt")) == ["0001.pt", "0002.pt"]
    assert [path.name for path in (work.folder / "checkpoints").glob("*.pt")] == [f"{STEPS:08d}.pt"]
    assert "epochs" not in SCRATCH


def test_none_need_be_kept(work, training, workers):
    fit(work, replace(training, keep_every_epochs=None), Resources())
    assert not (work.folder / "epochs").exists()


def test_it_says_on_how_many_workers_it_trains(work, training, workers):
    fit(work, training, Resources())
    assert "workers 2, cpus_per_worker 1, gpu False" in work.screen.console.file.getvalue()
    shares = {"resolved.workers": 2, "resolved.cpus_per_worker": 1, "resolved.gpu": False}
    chosen = {"resolved.precision": "fp32", "resolved.compile": False, "resolved.device": "cpu"}
    chosen["resolved.machine"] = machine_name(torch.device("cpu"))
    assert work.run.tagged == shares | chosen


def test_it_says_once_what_its_workers_chose_for_their_device(work, training, workers):
    facts = fit(work, training, Resources())
    assert work.screen.console.file.getvalue().count("precision fp32, compile False, device cpu") == 1
    chosen = {"precision": "fp32", "compile": False, "device": "cpu", "machine": machine_name(torch.device("cpu"))}
    assert facts.items() >= chosen.items()


def test_compilation_without_a_compiler_ends_the_training_in_one_line(work, training, workers, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"compile: true needs a C\+\+ compiler"):
        fit(work, replace(training, compile=True), Resources(max_failures=3))


def test_a_kernel_that_is_not_deterministic_ends_the_training_in_one_line(work, training, workers, monkeypatch):
    def build_with_such_a_kernel(device):
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set …")

    monkeypatch.setattr(trainer, "require_determinism", lambda: None)
    with pytest.raises(UserError, match="deterministic: true, but cumsum_cuda_kernel has no deterministic kernel"):
        fit(work, replace(training, build=build_with_such_a_kernel, deterministic=True), Resources(max_failures=3))
    assert len(messages(work.folder)) == 1


# Probing it


def test_what_a_probe_sees_is_told_drawn_and_kept(work, training, workers):
    def look(method, device, threads):
        return lambda epochs: {"probe_mAP": 0.9 - method.level.item() - abs(epochs - 1) / 4, "probe_rank1": 0.5}

    facts = fit(work, replace(training, probe=look), Resources())
    probed = [row for row in work.run.rows if "probe_mAP" in row]
    assert [row["step"] for row in probed] == [-1, STEPS // EPOCHS - 1, STEPS - 1]
    assert facts["final_probe_mAP"] == probed[-1]["probe_mAP"] < facts["best_probe_mAP"] == probed[1]["probe_mAP"]
    assert facts["best_probe_epoch"] == 1 and facts["final_probe_rank1"] == facts["best_probe_rank1"] == 0.5
    assert set(work.run.figures) == {"figures/loss.png", "figures/probe.png"}


def test_a_pre_training_is_probed_on_the_target_beside_it(work, workers, store, monkeypatch):
    beside = {"target": Artifact(work.folder, "ingest", 1, {})}
    work = replace(work, artifact=replace(work.artifact, auxiliary=beside))
    monkeypatch.setattr(StageContext, "input", lambda self, role: {"pool": pool, "target": target}[role])
    pool, target = store(), store(people=2)
    backbone = Backbone(name="vit_tiny", depth=1, img_size=(64, 32))
    config = Pretrain(epochs=5, batch_size=4, local_crops=0, out_dim=8, hidden_dim=8, bottleneck_dim=8, probe_every=2)
    facts = pretrain._pretrain(config, backbone, 0, Resources(), None, work)
    probed = {row["step"]: row["probe_mAP"] for row in work.run.rows if "probe_mAP" in row}
    assert list(probed) == [-1, 3, 7, 9]  # before the first step, and the ends of epochs 2, 4 and 5
    assert facts["final_probe_mAP"] == probed[9] and facts["best_probe_mAP"] == max(probed.values())
    assert work.run.datasets == {"pool": {"images": IMAGES}, "target": {"queries": 2, "gallery": IMAGES - 2}}
    shown = work.screen.console.file.getvalue()
    assert "    lr 7.813e-06, warmup_epochs 1, min_lr 1e-06, " in shown
    assert "optimizer adamw, probe_every 2, probe_images 8\n" in shown
    assert work.run.tagged["resolved.probe_every"] == 2


@pytest.mark.parametrize("method", ["mocov3", "moby"])
def test_another_method_is_trained_logged_and_kept_in_the_same_way(work, workers, store, monkeypatch, method):
    monkeypatch.setattr(StageContext, "input", lambda self, role: pool)
    pool = store()
    backbone = Backbone(name="vit_tiny", depth=1, img_size=(64, 32), stem="ics")
    config = Pretrain(method=method, epochs=2, batch_size=4, out_dim=8, hidden_dim=8, precision="fp32")
    facts = pretrain._pretrain(config, backbone, 0, Resources(), None, work)
    assert facts["steps"] == 4 and facts["images_seen"] == 16
    assert {"loss", "accuracy", "feature_std", "lr", "teacher_momentum", "grad_norm"} <= set(work.run.rows[-1])
    assert "optimizer adamw" in work.screen.console.file.getvalue()
    kept = load_backbone(work.folder / pretrain.WEIGHTS)[0]
    assert kept(torch.randn(2, 3, 64, 32)).shape == (2, 192)


def test_the_bar_tells_the_newest_figures(work):
    notes = []

    class Bar:
        def to(self, done, note):
            notes.append((done, note))

    journal = Journal(work.folder / "metrics.jsonl")
    delivered = delivery.Delivery(work, Bar(), lambda row: None)
    pace = {"images_per_second": 9.0, "wait": 0.1}
    for rows in (
        [{"step": 0, "epoch": 0.5, "loss": 3.0, **pace}],
        [{"step": 1, "epoch": 1.0, "loss": 2.0, **pace}],
        [{"step": 1, "epoch": 1.0, "probe_mAP": 0.25, "probe_rank1": 0.5}],
        [{"step": 2, "epoch": 1.5, "loss": 1.0, **pace}],
        [],
    ):
        for row in rows:
            journal.append(row)
        delivered._show()
    seen = "  probe mAP 25.0  Rank-1 50.0"
    assert notes == [
        (1, "epoch 0.5  loss 3.000  9 images/s, 10 % waiting"),
        (2, "epoch 1.0  loss 2.000  9 images/s, 10 % waiting"),
        (2, f"epoch 1.0  loss 2.000  9 images/s, 10 % waiting{seen}"),
        (3, f"epoch 1.5  loss 1.000  9 images/s, 10 % waiting{seen}"),
    ]


# What travels to the workers


def test_a_relative_checkpoint_is_found_from_another_folder(tmp_path, monkeypatch, workers, store):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("RAYREID_DATA", raising=False)
    backbone = Backbone(name="vit_tiny", depth=1, img_size=(64, 32), weights="w.pth")
    loaded, seen = [], []
    torch.save(initial_weights.network(backbone).state_dict(), "w.pth")
    artifact = Artifact(tmp_path, "pretrain", 1, {}, {"pool": Artifact(tmp_path, "ingest", 1, {})})
    monkeypatch.setattr(StageContext, "input", lambda self, role: store())
    monkeypatch.setattr(pretrain, "fit", lambda work, training, resources, watch: seen.append(training) or {})
    monkeypatch.setattr(initial_weights, "load_weights", lambda network, path, strict: loaded.append(path))
    monkeypatch.setattr(RecordedRun, "file", lambda self, path, folder: None)  # nothing is trained here
    config = Pretrain(epochs=1, batch_size=4, out_dim=8, hidden_dim=8, bottleneck_dim=8)
    pretrain._pretrain(
        config, backbone, 0, Resources(), None, StageContext(artifact, tmp_path, RecordedRun(), Screen())
    )
    monkeypatch.chdir(tmp_path / "there")
    seen[0].build(torch.device("cpu"))
    assert loaded == [tmp_path / "here" / "w.pth"] and loaded[0].is_file()


# With Ray


@pytest.mark.ray
def test_ray_stops_the_workers_that_wait_for_the_one_with_the_fault(work, training, store, shared_ray):
    plan = ShufflePlan(np.arange(IMAGES), BATCH, seed=0)
    broken = int(plan.batch(0, 1, 1, 2)[0])  # worker 1 meets it in the second step, worker 0 never
    config = Pretrain(epochs=1, batch_size=BATCH, local_crops=1, out_dim=8, hidden_dim=8, bottleneck_dim=8)
    backbone = Backbone(name="vit_tiny", depth=1, img_size=(64, 32))
    method = pretrain._Build(config, backbone, 0, plan.steps_per_epoch, None)
    training = replace(training, store=store(broken), build=method, save=str, epochs=1)
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"'{broken}\.jpg' is truncated"):
        fit(work, training, Resources(workers=2, cpus_per_worker=1, gpu=False))
    assert time.monotonic() - began < 600  # not the half hour after which gloo gives up
