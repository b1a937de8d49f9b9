"""The stage pretrain, with its length in steps; without Ray."""

import numpy as np
import pytest

import in_process
from rayreid.config import Backbone, Pretrain, Resources
from rayreid.data.datasets import open_dataset
from rayreid.data.store.store import ImageStore, finish_store, write_shard
from rayreid.errors import UserError
from rayreid.models.weights import read_header
from rayreid.selection.subset_file import write_subset
from rayreid.stages import pretrain
from rayreid.storage.artifacts import Artifact
from rayreid.storage.metrics_log import Journal

BACKBONE = Backbone(name="vit_tiny", stem="ics", depth=1, img_size=(32, 16))
POOL, SUBSET, BATCH = 32, 12, 4
EPOCH = POOL // BATCH
CONFIG = Pretrain(method="mocov3", batch_size=BATCH, hidden_dim=16, out_dim=8, steps=10, probe_every=1)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, ImageStore]:
    options = {
        "pool": {"images": POOL},
        "target": {"identities": 6, "test_identities": 3, "cameras": 2, "images_per_camera": 2},
    }
    made = {}
    for part, more in options.items():
        folder = tmp_path_factory.mktemp(part) / "store"
        dataset = open_dataset("synthetic", None, part=part, size=[32, 16], **more)
        write_shard(folder, 0, list(dataset.records()), dataset.read, "header")
        finish_store(folder, 1, dataset.name, dataset.version)
        made[part] = ImageStore(folder)
    return made


@pytest.fixture
def make(stores, tmp_path, monkeypatch):
    """Runs the stage on the pool or its first 12 images; returns facts and the context."""
    in_process.train_here(monkeypatch)

    def make(subset: bool, **changes):
        inputs = {name: Artifact(tmp_path, "ingest", 1, {"part": name}) for name in stores}
        for name, artifact in inputs.items():
            artifact.path.parent.mkdir(exist_ok=True)
            if not artifact.path.exists():
                artifact.path.symlink_to(stores[name].directory)
        chosen = Artifact(tmp_path, "select", 1, {}) if subset else None
        if chosen:
            chosen.path.mkdir(parents=True)
            write_subset(chosen.path, stores["pool"].keys[:SUBSET], np.ones(SUBSET))
        config = CONFIG.model_copy(update=changes)
        artifact = pretrain.plan(inputs["pool"], chosen, config, BACKBONE, 0, Resources(), inputs["target"])
        work = in_process.work_on(artifact)
        return artifact.job(work), work

    return make


def test_steps_are_the_same_on_a_part_of_the_pool_and_epochs_are_the_whole_pool_s(make):
    rates = []
    for subset, images in ((False, POOL), (True, SUBSET)):
        facts, work = make(subset)
        assert (facts["images"], facts["steps"], facts["images_seen"]) == (images, 10, 40)
        rows = Journal(work.folder / "metrics.jsonl").history()
        assert [row["epoch"] for row in rows if "probe_mAP" in row] == [0, 1, 10 / EPOCH]
        rates.append([(row["step"], row["epoch"], row["lr"]) for row in rows if "lr" in row])
        assert rates[-1][-1][:2] == (9, 10 / EPOCH)
        assert read_header(work.folder / pretrain.WEIGHTS)["epochs"] == 10 / EPOCH
    assert rates[0] == rates[1]


def test_in_epochs_a_part_of_the_pool_has_fewer_steps(make):
    assert make(True, steps=None, epochs=2)[0]["steps"] == 2 * (SUBSET // BATCH)


def test_a_warm_up_that_is_longer_than_the_steps_is_refused(make):
    with pytest.raises(UserError, match=r"warmup_epochs=2 is 16 steps \(8 each\), more than the pretrain\.steps=10"):
        make(False, warmup_epochs=2)
