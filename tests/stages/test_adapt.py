"""The stage adapt: its place in the graph, what it keeps and tells; without Ray."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

import in_process
from rayreid.config import Adapt, Backbone, Experiment, Resources
from rayreid.console import Screen
from rayreid.data.batch import ImageBatch
from rayreid.data.datasets import open_dataset
from rayreid.data.store.store import ImageStore, finish_store, write_shard
from rayreid.errors import UserError
from rayreid.evaluation.retrieval import evaluate_retrieval
from rayreid.execution.production import StageContext
from rayreid.models.embedding import Embedder
from rayreid.pipeline.graph import STAGE_ROLE, plan
from rayreid.reid.pseudo_labels import Clustering
from rayreid.stages import adapt, finetune, pretrain
from rayreid.stages.training import pseudo_label_figures
from rayreid.stages.training.validation import Look
from rayreid.storage.artifacts import Artifact
from rayreid.storage.metrics_log import Journal
from recorded_run import RecordedRun

CPU = torch.device("cpu")
BACKBONE = Backbone(name="vit_tiny", stem="ics", depth=1, img_size=(32, 16))
CONFIG = Adapt(method="usl", epochs=2, iterations=2, clusters=2, instances=2, k1=5, k2=2, min_samples=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ImageStore:
    folder = tmp_path_factory.mktemp("target") / "store"
    dataset = open_dataset(
        "synthetic", None, part="target", size=[32, 16], identities=6, test_identities=3, cameras=2, images_per_camera=2
    )
    write_shard(folder, 0, list(dataset.records()), dataset.read, "header")
    finish_store(folder, 1, dataset.name, dataset.version)
    return ImageStore(folder)


@pytest.fixture
def method():
    """A method with a neck that has seen something."""
    torch.manual_seed(0)
    made, prepare = adapt._Build(CONFIG, BACKBONE, 0, None)(CPU)
    made.train()
    with torch.no_grad():
        made.bottleneck.weight.uniform_(0.5, 2)
        made(torch.randn(8, 3, 32, 16))
    return made, prepare


# The graph


def experiment(**changes) -> Experiment:
    drawn = {"dataset": "synthetic"}
    whole = {"fraction": 1.0}
    return Experiment.model_validate({"pool": drawn, "target": drawn, "select": whole, **changes})


def test_without_a_word_nothing_is_adapted(tmp_path):
    assert set(plan(experiment(), tmp_path)) == {"pool", "target", "weights", "model", "metrics"}


def test_usl_adapts_the_pre_trained_weights(tmp_path):
    graph = plan(experiment(adapt="usl"), tmp_path)
    assert list(graph) == ["pool", "target", "weights", "adapted", "metrics"]
    assert graph["adapted"].inputs == {"target": graph["target"], "weights": graph["weights"]}
    assert graph["metrics"].inputs["model"] == graph["adapted"]


def test_uda_adapts_what_was_fine_tuned_on_the_source(tmp_path):
    source = {"dataset": "synthetic", "options": {"seed": 3}}
    graph = plan(experiment(adapt="uda", source=source), tmp_path)
    assert list(graph) == ["pool", "target", "source", "weights", "model", "adapted", "metrics"]
    assert graph["model"].inputs == {"target": graph["source"], "weights": graph["weights"]}
    assert graph["adapted"].inputs == {"target": graph["target"], "weights": graph["model"]}
    assert graph["source"].id != graph["target"].id
    with pytest.raises(UserError, match="say source:"):
        plan(experiment(adapt="uda"), tmp_path)


@pytest.mark.parametrize(("method", "evaluated"), [("usl", "weights"), ("uda", "model")])
def test_zero_epochs_evaluate_what_it_would_start_from(tmp_path, method, evaluated):
    graph = plan(experiment(adapt={"method": method, "epochs": 0}, source={"dataset": "synthetic"}), tmp_path)
    assert "adapted" not in graph and graph["metrics"].inputs["model"] == graph[evaluated]


def test_zero_epochs_of_nothing(tmp_path):
    with pytest.raises(UserError, match="pretrain: none makes none"):
        plan(experiment(adapt={"method": "usl", "epochs": 0}, pretrain="none"), tmp_path)


def test_usl_may_start_from_a_checkpoint_or_from_nothing(tmp_path):
    graph = plan(experiment(adapt="usl", pretrain="none"), tmp_path)
    assert set(graph["adapted"].inputs) == {"target"} and "pool" not in graph


def test_every_role_belongs_to_a_stage():
    assert STAGE_ROLE["adapt"] == ("adapted",) and "source" in STAGE_ROLE["ingest"]


def test_the_id_follows_what_changes_the_result(tmp_path):
    def of(**changes):
        return plan(experiment(adapt={"method": "usl", **changes}), tmp_path)["adapted"].id

    assert of() == of(evaluate_every=3) == of(checkpoint_minutes=1)
    assert len({of(), of(eps=0.7), of(clusters=16), of(memory="mean")}) == 4


@pytest.mark.parametrize(("stage", "name"), [("pretrain", pretrain.WEIGHTS), ("finetune", finetune.WEIGHTS)])
def test_it_starts_from_its_input_s_weights(tmp_path, stage, name):
    weights = Artifact(tmp_path, stage, 1, {})
    work = StageContext(Artifact(tmp_path, "adapt", 1, {}, {"weights": weights}), tmp_path, None, None)
    assert adapt._given(work) == weights.path / name
    assert adapt._given(replace(work, artifact=Artifact(tmp_path, "adapt", 1, {}))) is None


# What is computed


def test_the_published_transform(store, method):
    transform = method[1].args[0]
    assert (transform.mean, transform.std, transform.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert (transform.erasing, transform.erasing_area) == (0.5, (0.02, 0.4))
    assert (transform.erasing_fill, transform.padding) == ((0.485, 0.456, 0.406), 10)
    test = adapt._test(BACKBONE)
    assert (test.mean, test.std, test.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")


def test_the_file_gives_the_features_that_were_clustered(store, method, tmp_path):
    made, _ = method
    adapt._save(tmp_path / adapt.WEIGHTS, {"method": "usl"}, made)
    images = ImageBatch.collate([store.image(row) for row in range(5)])
    embed = Embedder(tmp_path / adapt.WEIGHTS, CPU, "fp32")
    with torch.no_grad():
        expected = made.eval()(adapt._test(BACKBONE)(images))
        raw = F.normalize(made.base(adapt._test(BACKBONE)(images)), dim=1)
    found = F.normalize(embed(images), dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - raw).abs().max() > 0.01


@pytest.mark.parametrize(("images", "refused"), [(5, False), (4, True)])
def test_fewer_images_than_a_neighbour_list(images, refused):
    if not refused:
        return adapt.check_images(CONFIG, images)
    with pytest.raises(UserError, match=r"adapt\.k1=5, but .* only 4 images"):
        adapt.check_images(CONFIG, images)
    return None


def test_fewer_images_than_a_batch_takes_clusters():
    with pytest.raises(UserError, match=r"adapt\.clusters=25, but .* only 24 images"):
        adapt.check_images(CONFIG.model_copy(update={"clusters": 25}), 24)


def test_an_epoch_on_a_worker(store, method, tmp_path):
    made, prepare = method
    rows = []
    feed = adapt._Feeding(CONFIG, BACKBONE, store.directory, tmp_path / "labels", 0)(made, prepare, CPU, 1, rows.append)
    images, targets = next(feed(0)).data
    assert images.shape == (4, 3, 32, 16) and len(set(targets.tolist())) == 2
    assert rows[0]["clusters"] >= 2 and "ari" in rows[0]
    train = store.rows_of("train")
    with np.load(tmp_path / "labels" / "0001.npz") as file:
        assert file["rows"].tolist() == train.tolist()


# What is told


def test_a_look_at_query_and_gallery(store, method):
    made, _ = method
    look = Look(store.directory, adapt._test(BACKBONE), 2, 5, "fp32")(made, CPU, 1)
    assert [bool(look(epoch)) for epoch in range(1, 6)] == [False, True, False, True, True]
    query, gallery = store.rows_of("query"), store.rows_of("gallery")
    with torch.no_grad():
        embed = lambda rows: made.eval()(  # noqa: E731
            adapt._test(BACKBONE)(ImageBatch.collate([store.image(row) for row in rows]))
        )
        report = evaluate_retrieval(
            embed(query),
            embed(gallery),
            store.pids[query],
            store.pids[gallery],
            store.camids[query],
            store.camids[gallery],
        )
    assert look(5)["eval_mAP"] == pytest.approx(report.mAP, abs=1e-6)


def test_by_default_it_does_not_look(store, method):
    look = Look(store.directory, adapt._test(BACKBONE), CONFIG.evaluate_every, 1, "fp32")(method[0], CPU, 1)
    assert look(1) == {}


def test_it_says_that_labels_were_kept():
    found = {"epoch": 6.0, "clusters": 1.0, "outliers": 12.0, "kept_labels": 1.0}
    assert pseudo_label_figures.watch(found).startswith("epoch 7: 1 clusters, 12 outliers cannot be trained on")
    assert pseudo_label_figures.watch({**found, "kept_labels": 0.0}) is None
    assert pseudo_label_figures.watch({"step": 3, "loss": 1.0}) is None


def test_figures_and_facts_of_the_labels(store, tmp_path):
    train = store.rows_of("train")
    labels = np.where(np.arange(len(train)) < 3, -1, np.arange(len(train)) % 4)
    sizes = np.bincount(labels[labels >= 0])
    labels[np.flatnonzero(labels == sizes.argmin())[2:]] = -1  # a cluster of two
    for epoch in (1, 2):
        np.savez(tmp_path / f"{epoch:04d}.npz", rows=train, labels=labels)
    seconds = {"seconds_extract": 1.0, "seconds_neighbours": 0.25, "seconds_cluster": 0.5}
    for epoch, found in enumerate((9.0, 4.0)):
        figures = {"clusters": found, "outliers": 3.0, "images_used": 21.0, "ari": 0.5, "kept_labels": float(epoch)}
        Journal(tmp_path / "metrics.jsonl").append({"step": 2 * epoch, "epoch": float(epoch), **figures, **seconds})
    run = RecordedRun()
    work = StageContext(Artifact(tmp_path, "adapt", 1, {}), tmp_path, run, Screen(Console(file=io.StringIO())))
    facts = pseudo_label_figures.draw(work, store, tmp_path, 2)
    assert facts["final_clusters"] == 4 and facts["final_ari"] == 0.5 and facts["epochs_with_kept_labels"] == 1
    assert facts["total_seconds_extract"] == 2 and facts["total_seconds_cluster"] == 1
    assert {axes.get_title(loc="left") for axes in run.drawn["figures/labels.png"].axes} == {
        "clusters",
        "outliers",
        "ari",
    }
    assert [name for name in run.figures if "clusters/" in name] == [f"figures/clusters/000{n}.png" for n in (1, 2)]
    (sheet,) = run.drawn["figures/clusters/0002.png"].axes
    sizes = np.bincount(labels[labels >= 0])
    captions = [text.get_text() for text in sheet.texts[::2]]  # the others stand below the pictures
    assert len(sheet.images) == 4 * 8 and captions[0].startswith(f"{sizes.max()}: ")
    assert [caption != "" for caption in captions[-8:]] == [True] * 2 + [False] * 6


def test_of_a_long_run_ten_sheets_are_drawn(store, tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_label_figures, "sheet", lambda *rest: None)
    train = store.rows_of("train")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "time": 0, "clusters": 2, "outliers": 0, "images_used": 24, "kept_labels": 0, "epoch": 0,'
        ' "seconds_extract": 1, "seconds_neighbours": 1, "seconds_cluster": 1}\n'
    )
    for epoch in range(1, 51):
        np.savez(tmp_path / f"{epoch:04d}.npz", rows=train, labels=np.arange(len(train)) % 2)
    run = RecordedRun()
    work = StageContext(Artifact(tmp_path, "adapt", 1, {}), tmp_path, run, Screen(Console(file=io.StringIO())))
    pseudo_label_figures.draw(work, store, tmp_path, 50)
    assert len(run.figures) == 11
    assert run.figures[1] == "figures/clusters/0001.png" and run.figures[-1] == "figures/clusters/0050.png"


# The whole stage


@pytest.fixture
def make(store, tmp_path, monkeypatch):
    """Runs the stage on a start of its own with a changed configuration; returns facts, run and screen's text."""
    in_process.train_here(monkeypatch)

    def make(**changes):
        target = Artifact(tmp_path, "ingest", 1, {})
        target.path.parent.mkdir(exist_ok=True)
        if not target.path.exists():
            target.path.symlink_to(store.directory)
        artifact = adapt.plan(target, None, CONFIG.model_copy(update=changes), BACKBONE, 0, Resources())
        artifact.path.mkdir(parents=True, exist_ok=True)
        work = in_process.work_on(artifact)
        return artifact.job(work), work

    return make


def test_the_stage_leaves_weights_labels_figures_and_facts(make):
    facts, work = make(evaluate_every=2)
    assert facts["steps"] == 4 and facts["images_seen"] == 16 and facts["images"] == 24
    assert facts["final_clusters"] >= 2 and facts["epochs_with_kept_labels"] == 0 and "final_ari" in facts
    assert (work.folder / adapt.WEIGHTS).is_file() and len(list((work.folder / "labels").iterdir())) == 2
    assert work.run.figures == [
        f"figures/{name}.png" for name in ("loss", "eval", "labels", "clusters/0001", "clusters/0002")
    ]
    assert facts["final_eval_mAP"] == facts["best_eval_mAP"] and facts["best_eval_epoch"] == 2
    logged = {name for row in work.run.rows for name in row}
    assert {"clusters", "loss", "eval_mAP", "seconds_cluster"} <= logged
    assert logged & set(facts) <= {"gpu_hours"}  # facts are metrics, too: under names of their own they spoil no curve
    assert "decay_every 1" in work.screen.console.file.getvalue()


def test_an_epoch_with_the_last_labels_is_told_on_the_screen_and_in_the_run(make, monkeypatch):
    real, calls = Clustering.__call__, []

    def lost(self, features):
        calls.append(1)
        return real(self if len(calls) != 2 else replace(self, min_samples=1000), features)

    monkeypatch.setattr(Clustering, "__call__", lost)
    facts, work = make()
    assert facts["epochs_with_kept_labels"] == 1 and facts["final_clusters"] == 0
    assert "epoch 2: 0 clusters, 24 outliers cannot be trained on" in work.screen.console.file.getvalue()
    assert work.run.tagged["warning"].startswith("epoch 2")


def test_a_first_epoch_without_clusters_ends_the_stage_with_the_remedy(make):
    with pytest.raises(UserError, match=r"no cluster among 24 images.*adapt\.min_samples"):
        make(min_samples=1000)
