"""Cluster contrast as the loop trains it: an epoch's labels, its memory, its images; and going on after a kill."""

import contextlib
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from rayreid.data.augment.reid_transforms import ReIDTest, ReIDTrain
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError
from rayreid.evaluation.probe import extract
from rayreid.models.backbones import build_backbone
from rayreid.reid.cluster_contrast import ClusterContrast
from rayreid.reid.pseudo_feed import PseudoLabelFeed, PseudoLabelPlan
from rayreid.reid.pseudo_labels import Clustering, PseudoLabels
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.loop import LoopSettings, train

CPU = torch.device("cpu")
PEOPLE, EACH, SIZE, HALF = 6, 8, (32, 16), (0.5,) * 3
EPOCHS, STEPS, CLUSTERS, INSTANCES = 3, 3, 2, 3


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ImageStore:
    """Images of a few people, each a pattern of its own under a little noise, by two cameras; one image is a query."""
    folder = tmp_path_factory.mktemp("target") / "store"

    def read(record: Record) -> bytes:
        person = np.random.default_rng(record.pid).integers(0, 256, (4, 2, 3))
        noise = np.random.default_rng([1, int(record.path)]).integers(-40, 40, (32, 16, 3))
        stream = io.BytesIO()
        pixels = np.clip(np.kron(person, np.ones((8, 8, 1))) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()

    records = [Record(f"{n:02d}.png", n // EACH, n % 2, "train", str(n)) for n in range(PEOPLE * EACH)]
    write_shard(folder, 0, [*records, Record("00query.png", 0, 0, "query", "99")], read)
    finish_store(folder, 1, "patterns", "1")
    return ImageStore(folder)


def build(init=0):
    torch.manual_seed(init)
    base = build_backbone("vit_tiny", "ics", SIZE, depth=2, drop_path=0.5, embed_dim=24, num_heads=2)
    return ClusterContrast(base, steps_per_epoch=STEPS, lr=0.01, decay_every=2)


def feed_of(method, store, folder, log=lambda row: None, watched=lambda images: images):
    train_rows = store.rows_of("train")
    clustering = Clustering(k1=7, k2=2, eps=0.7, min_samples=3)
    transform = ReIDTrain(SIZE, HALF, HALF, padding=2)
    return PseudoLabelFeed(
        method,
        store,
        PseudoLabelPlan(train_rows, store.camids[train_rows], CLUSTERS, INSTANCES, STEPS, seed=5),
        PseudoLabels(folder, train_rows, store.pids[train_rows], clustering, CLUSTERS),
        prepare=lambda images, keys, epoch, rows: watched(transform(images, keys, epoch, 5)),
        extract=lambda backbone: extract(backbone, store, train_rows, ReIDTest(SIZE, HALF, HALF, "bicubic"), CPU),
        device=CPU,
        log=log,
    )


def run(store, folder, until=None, init=0, seconds=-1.0):
    """The trained method and the rows of its journal; `until`: the step before which it is killed."""
    method, rows = build(init), []
    feed = feed_of(method, store, folder / "labels", log=rows.append)

    def batches(start):
        for step, batch in enumerate(feed(start), start):
            if step == until:
                raise KilledError
            yield batch

    settings = LoopSettings(STEPS, EPOCHS, seed=3, log_every=1, checkpoint_seconds=seconds)
    with contextlib.suppress(KilledError):
        train(method, batches, settings, CPU, Checkpoints(folder / "checkpoints"), rows.append)
    return method, rows


def told(rows, *names):
    return [{name: row[name] for name in ("step", *names)} for row in rows if names[0] in row]


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """The uninterrupted run: its folder, method and rows."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(store, folder)


def test_every_epoch_is_clustered_once_and_trained_on(whole):
    folder, method, rows = whole
    found = [row for row in rows if "clusters" in row]
    assert [(row["step"], row["epoch"]) for row in found] == [(0, 0.0), (3, 1.0), (6, 2.0)]
    assert all(row["clusters"] >= CLUSTERS and row["ari"] > 0.2 and row["seconds_extract"] > 0 for row in found)
    assert sorted(path.name for path in (folder / "labels").iterdir()) == ["0001.npz", "0002.npz", "0003.npz"]
    assert [row["step"] for row in rows if "loss" in row] == list(range(EPOCHS * STEPS))
    assert len(method.memory.features) == found[-1]["clusters"]


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4, 6, 8])
def test_the_resumed_run_is_the_uninterrupted_one(store, tmp_path, whole, killed_at):
    run(store, tmp_path, until=killed_at)
    method, rows = run(store, tmp_path, init=1)
    assert [row["step"] for row in rows if "loss" in row] == list(range(killed_at, EPOCHS * STEPS))
    expected = [row for row in whole[2] if row["step"] >= killed_at]
    assert told(rows, "loss", "accuracy", "grad_norm", "lr") == told(expected, "loss", "accuracy", "grad_norm", "lr")
    assert told(rows, "clusters", "outliers", "ari") == told(expected, "clusters", "outliers", "ari")
    for name, value in whole[1].state_dict().items():
        assert torch.equal(value, method.state_dict()[name]), name


def test_without_a_checkpoint_within_the_epoch_it_begins_anew(store, tmp_path, whole):
    run(store, tmp_path, until=5, seconds=1e9)
    method, rows = run(store, tmp_path, init=1, seconds=1e9)
    assert next(row["step"] for row in rows if "loss" in row) == 3
    for name, value in whole[1].state_dict().items():
        assert torch.equal(value, method.state_dict()[name]), name


def test_labels_that_do_not_belong_to_the_checkpoint_are_refused(store, tmp_path, whole):
    run(store, tmp_path, until=4)
    file = tmp_path / "labels" / "0002.npz"
    with np.load(file) as held:
        arrays = dict(held)
    arrays["labels"] = np.arange(PEOPLE * EACH, dtype=np.int32) // 2
    np.savez(file, **arrays)
    with pytest.raises(UserError, match="labels of epoch 2 are of 24 clusters, the checkpoint's memory of"):
        run(store, tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"0002\.npz.*missing"):
        run(store, tmp_path)


def test_batches_are_of_the_epoch_s_clusters(store, tmp_path):
    method = build()
    feed = feed_of(method, store, tmp_path)
    for step, batch in enumerate(itertools.islice(feed(0), 2 * STEPS)):
        images, targets = batch.data
        labels = dict(zip(store.keys[feed.plan.rows], feed.labels.clusters.labels, strict=True))
        assert [labels[key] for key in batch.keys] == targets.tolist()
        assert images.shape == (CLUSTERS * INSTANCES, 3, *SIZE)
        assert len(targets.unique()) == CLUSTERS and (targets >= 0).all()
        assert "00query.png" not in batch.keys
        features, found = (
            extract(method, store, store.rows_of("train"), ReIDTest(SIZE, HALF, HALF, "bicubic"), CPU),
            torch.from_numpy(feed.labels.clusters.labels),
        )
        means = torch.stack([features[found == cluster].mean(0) for cluster in range(len(feed.labels.clusters))])
        torch.testing.assert_close(method.memory.features, torch.nn.functional.normalize(means), atol=1e-5, rtol=1e-5)
        assert feed.labels.found_in == step // STEPS + 1


def test_nothing_is_read_ahead_over_the_end_of_an_epoch(store, tmp_path):
    prepared = []
    feed = feed_of(build(), store, tmp_path, watched=lambda images: prepared.append(0) or images)
    for step, _ in enumerate(itertools.islice(feed(0), 2 * STEPS)):
        assert len(prepared) <= (step // STEPS + 1) * STEPS


def test_the_wait_for_labels_counts(store, tmp_path):
    rows = []
    first = next(feed_of(build(), store, tmp_path, log=rows.append)(0))
    row = rows[0]
    assert first.wait >= row["seconds_extract"] + row["seconds_neighbours"] + row["seconds_cluster"]


def test_an_epoch_without_clusters_is_trained_on_with_the_last_labels(store, tmp_path):
    rows = []
    feed = feed_of(build(), store, tmp_path, log=rows.append)
    stream = feed(0)
    for _ in range(STEPS):
        next(stream)
    feed.labels.clustering = Clustering(k1=7, k2=2, min_samples=40)
    next(stream)
    assert [row["kept_labels"] for row in rows] == [0, 1] and rows[1]["clusters"] == 0
    assert feed.labels.found_in == 1


def test_a_plan_knows_no_epoch_but_the_one_begun():
    plan = PseudoLabelPlan(np.arange(8), np.zeros(8), 2, 2, 3, seed=0)
    with pytest.raises(ValueError, match="no labels"):
        plan.batch(0, 0)
    labels = np.array([0, 0, 0, 1, 1, 1, -1, -1])
    plan.begin(1, labels)
    assert plan.size == 4 and len(plan.batch(1, 2)) == 4
    assert not set(np.concatenate([plan.batch(1, step) for step in range(3)])) & {6, 7}
    with pytest.raises(ValueError, match="no labels"):
        plan.batch(0, 0)


def test_the_first_clusters_are_found_behind_a_neck_with_the_images_statistics(store, tmp_path):
    method = build()
    before = extract(method.base, store, store.rows_of("train"), ReIDTest(SIZE, HALF, HALF, "bicubic"), CPU)
    method.base.norm.bias.data += 3.0  # what all features have in common
    next(feed_of(method, store, tmp_path)(0))
    torch.testing.assert_close(method.bottleneck.running_mean, before.mean(0) + 3, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(method.bottleneck.running_var, before.var(0), atol=1e-4, rtol=1e-4)
    assert method.memory.features.mean(0).norm() < 0.5, "the clusters share a direction"


def test_a_run_that_goes_on_keeps_its_neck(store, tmp_path):
    method = build()
    method.bottleneck.running_mean.fill_(7.0)
    feed = feed_of(method, store, tmp_path)
    next(feed(STEPS))
    assert (method.bottleneck.running_mean == 7.0).all()
