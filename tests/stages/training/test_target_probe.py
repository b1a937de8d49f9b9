"""The probe beside a pre-training: when it looks, and that the training is what it would be without it."""

import contextlib

import numpy as np
import pytest
import torch

from rayreid.config import Backbone, Experiment, Pretrain
from rayreid.data.datasets import open_dataset
from rayreid.data.sampling.batch_plans import ShufflePlan
from rayreid.data.store.store import ImageStore, finish_store, write_shard
from rayreid.evaluation.probe import choose_probe
from rayreid.execution.periodic_metrics import note, outcome
from rayreid.pipeline.graph import plan
from rayreid.stages import pretrain
from rayreid.stages.training.probe import TargetProbe
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.feed import Prefetcher
from rayreid.training.loop import LoopSettings, train

CPU = torch.device("cpu")
EPOCHS, BATCH, IMAGES = 2, 4, 8
BACKBONE = Backbone(name="vit_tiny", stem="ics", depth=1, img_size=(32, 16))
CONFIG = Pretrain(
    epochs=EPOCHS,
    batch_size=BATCH,
    lr=0.1,
    teacher_momentum=0,
    warmup_epochs=0,
    local_crops=0,
    out_dim=16,
    hidden_dim=8,
    bottleneck_dim=8,
    precision="fp32",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small labelled target, which is trained on here, too."""
    folder = tmp_path_factory.mktemp("target") / "store"
    options = {"part": "target", "size": [32, 16], "identities": 4, "test_identities": 2, "cameras": 2}
    dataset = open_dataset("synthetic", None, **options)
    write_shard(folder, 0, list(dataset.records()), dataset.read, "header")
    finish_store(folder, 1, dataset.name, dataset.version)
    return ImageStore(folder)


@pytest.fixture
def target_probe(store):
    probe = choose_probe(store.pids, store.camids, store.rows_of("train"), 100)
    return TargetProbe(store.directory, probe, BACKBONE.img_size, 1, EPOCHS, "fp32")


def run(store, target_probe=None, checkpoints=None, until=None):
    """The trained method and the rows of its journal; `until`: epochs after which it is killed."""
    plan = ShufflePlan(np.arange(IMAGES), BATCH, seed=0)
    torch.manual_seed(0)
    method, prepare = pretrain._Build(CONFIG, BACKBONE, 0, plan.steps_per_epoch, None)(CPU)
    rows = []
    look = target_probe(method, CPU, 2) if target_probe else None

    def after(epochs):
        seen = look(epochs) if look else {}
        if epochs == until:
            raise KeyboardInterrupt
        return seen

    settings = LoopSettings(plan.steps_per_epoch, EPOCHS)
    with contextlib.suppress(KeyboardInterrupt):
        train(method, Prefetcher(store, plan, prepare, CPU), settings, CPU, checkpoints, rows.append, after)
    return method, rows


def test_a_training_that_is_probed_is_the_one_that_is_not(store, target_probe, tmp_path):
    alone, _ = run(store)
    probed, rows = run(store, target_probe)
    run(store, target_probe, Checkpoints(tmp_path), until=1)
    resumed, _ = run(store, target_probe, Checkpoints(tmp_path))
    for other in (probed, resumed):
        for name, value in other.state_dict().items():
            assert torch.equal(value, alone.state_dict()[name]), name
    seen = [row for row in rows if "probe_mAP" in row]
    assert [(row["step"], row["epoch"]) for row in seen] == [(-1, 0.0), (1, 1.0), (3, 2.0)]
    assert all(0 < row["probe_mAP"] <= 1 and 0 <= row["probe_rank1"] <= 1 for row in seen)
    assert all(row["probe_effective_rank"] >= 1 for row in seen)
    assert seen[1]["probe_mAP"] != seen[2]["probe_mAP"]  # at this rate the features do change


@pytest.mark.parametrize(("every", "looked"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (9, [5])])
def test_it_looks_every_so_many_epochs_and_after_the_last(target_probe, every, looked, monkeypatch):
    monkeypatch.setattr(
        "rayreid.stages.training.probe.extract", lambda backbone, store, rows, *rest: torch.ones(len(rows), 2)
    )
    method = type("Method", (), {"backbone": None})()
    look = TargetProbe(target_probe.store, target_probe.probe, target_probe.size, every, 5, "fp32")(method, CPU, 1)
    assert [epochs for epochs in range(1, 6) if look(epochs)] == looked


def test_a_training_that_was_not_probed_has_nothing_to_tell():
    assert outcome(None, [{"step": 0, "epoch": 1.0, "loss": 1.0}]) == {}
    assert note({"loss": 1.0}) == ""


# The graph


def experiment(**changes) -> Experiment:
    drawn = {"dataset": "synthetic"}
    return Experiment.model_validate({"pool": drawn, "target": drawn, **changes})


def test_the_target_stands_beside_pre_trainings_and_changes_no_id(tmp_path):
    with_probe, other = (
        plan(experiment(target={"dataset": "synthetic", "options": {"seed": seed}}), tmp_path) for seed in (0, 1)
    )
    without = plan(experiment(pretrain={"probe_every": 0}, proxy={"pretrain": {"probe_every": 0}}), tmp_path)
    for role in ("source_proxy", "weights"):
        assert with_probe[role].auxiliary == {"target": with_probe["target"]}
        assert without[role].auxiliary == {}
    assert with_probe["target"].id != other["target"].id
    assert with_probe["source_proxy"].id == other["source_proxy"].id == without["source_proxy"].id
    random = [
        plan(experiment(select={"strategy": "random"}, pretrain={"probe_every": every}), tmp_path)["weights"].id
        for every in (0, 1, "auto")
    ]
    assert len(set(random)) == 1
