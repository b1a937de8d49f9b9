"""The stage finetune: which images it takes, what it looks at in passing, what it keeps and tells; without Ray."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import in_process
from rayreid.config import Backbone, Experiment, Finetune, Resources
from rayreid.data.datasets import open_dataset
from rayreid.data.sampling.balanced import BalancedPlan
from rayreid.data.sampling.batch_plans import IdentityPlan, ShufflePlan
from rayreid.data.sampling.camera import CameraPlan
from rayreid.data.store.store import ImageStore, finish_store, write_shard
from rayreid.evaluation.retrieval import evaluate_retrieval
from rayreid.models.embedding import Embedder, Pass
from rayreid.models.weights import BEST, read_header, weights_of
from rayreid.pipeline.graph import plan
from rayreid.stages import finetune
from rayreid.stages.training.validation import Best, Look
from rayreid.storage.artifacts import Artifact
from rayreid.storage.metrics_log import Journal

CPU = torch.device("cpu")
EPOCHS = 3
BACKBONE = Backbone(name="vit_tiny", stem="ics", depth=1, img_size=(32, 16))
CONFIG = Finetune(epochs=EPOCHS, identities=4, instances=2, lr=0.05, warmup_epochs=0, precision="fp32", padding=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ImageStore:
    folder = tmp_path_factory.mktemp("target") / "store"
    dataset = open_dataset("synthetic", None, part="target", size=[32, 16], identities=6, test_identities=4, cameras=2)
    write_shard(folder, 0, list(dataset.records()), dataset.read, "header")
    finish_store(folder, 1, dataset.name, dataset.version)
    return ImageStore(folder)


@pytest.fixture
def make(store, tmp_path, monkeypatch):
    """Runs the stage in a root of its own with a changed configuration; returns facts and work."""
    in_process.train_here(monkeypatch)

    def make(root="outputs", **changes):
        target = Artifact(tmp_path / root, "ingest", 1, {})
        target.path.parent.mkdir(parents=True, exist_ok=True)
        if not target.path.exists():
            target.path.symlink_to(store.directory)
        artifact = finetune.plan(target, None, CONFIG.model_copy(update=changes), BACKBONE, 0, Resources())
        work = in_process.work_on(artifact)
        return artifact.job(work), work

    return make


def looked_at(rows):
    return {row["step"]: row["eval_mAP"] for row in rows if "eval_mAP" in row}


# Which images


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("identity", IdentityPlan), ("camera", CameraPlan), ("plain", ShufflePlan), ("balanced", BalancedPlan)],
)
def test_the_configured_sampler_deals_its_batch_to_workers(store, sampler, kind):
    rows = store.rows_of("train")
    config = CONFIG.model_copy(update={"sampler": sampler})
    plan = finetune.sampling(config, rows, store.pids[rows], store.camids[rows], 0)
    assert type(plan) is kind and plan.size == 8
    for epoch in range(2):
        for step in range(plan.steps_per_epoch):
            batch = plan.batch(epoch, step)
            shares = [plan.batch(epoch, step, rank, 2) for rank in range(2)]
            np.testing.assert_array_equal(np.concatenate(shares), batch)
            assert np.isin(batch, rows).all()
            if config.by_identity:  # each worker holds whole identities, and nobody else holds these
                per_worker = [store.pids[share].reshape(-1, CONFIG.instances) for share in shares]
                assert all((pids == pids[:, :1]).all() for pids in per_worker)
                assert len({int(pid) for pids in per_worker for pid in pids[:, 0]}) == CONFIG.identities


def test_ids_stay_what_they_were_but_for_what_changes_the_result(tmp_path):
    drawn = {"dataset": "synthetic"}

    def of(**changes):
        tree = {"pool": drawn, "target": drawn, "select": {"fraction": 1.0}, "finetune": changes}
        return plan(Experiment.model_validate(tree), tmp_path)["model"].id

    assert of() == of(evaluate_every=3) == of(sampler="identity") == of(margin=None)
    assert len({of(), of(sampler="camera"), of(sampler="plain"), of(sampler="balanced"), of(margin=0.3)}) == 5


def test_the_margin_reaches_the_method():
    method, _ = finetune._Build(CONFIG.model_copy(update={"margin": 0.3}), BACKBONE, 0, 5, 6, None, np.zeros(9))(CPU)
    assert method.margin == 0.3
    assert finetune._Build(CONFIG, BACKBONE, 0, 5, 6, None, np.zeros(9))(CPU)[0].margin is None


def test_the_published_transforms(store):
    transform = finetune._Build(CONFIG, BACKBONE, 0, 5, 6, None, np.zeros(9))(CPU)[1].args[0]
    assert (transform.mean, transform.std, transform.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert (transform.erasing, transform.erasing_area, transform.erasing_fill) == (0.5, (0.02, 1 / 3), None)
    assert (transform.flip, Finetune().padding, Finetune().erasing, Finetune().drop_path) == (0.5, 10, 0.5, 0.1)
    look = finetune._look(CONFIG.model_copy(update={"evaluate_every": 1}), BACKBONE, store, None)
    assert (look.transform.mean, look.transform.std, look.transform.interpolation) == ((0.5,) * 3,) * 2 + ("bilinear",)


# What is looked at


def test_weights_are_the_same_with_looks_and_without_and_best_and_last_are_kept(make, store):
    alone, plain = make("alone")
    facts, work = make("looked", evaluate_every=2)
    assert plain.artifact.id == work.artifact.id
    last, expected = (load_file(one.folder / finetune.WEIGHTS) for one in (work, plain))
    assert all(torch.equal(last[name], expected[name]) for name in expected)
    steps = facts["steps"] // EPOCHS
    seen = looked_at(work.run.rows)
    assert list(seen) == [2 * steps - 1, 3 * steps - 1]  # after epoch 2, and after the last
    assert facts["final_eval_mAP"] == seen[3 * steps - 1] and facts["best_eval_mAP"] == max(seen.values())
    header = read_header(work.folder / BEST)
    assert (header["epochs"], header["eval_mAP"]) == (facts["best_eval_epoch"], facts["best_eval_mAP"])
    assert header["artifact"] == str(work.artifact) and header["method"] == "supervised"
    assert "figures/eval.png" in work.run.figures
    assert not any(name.startswith(("final_eval", "best_eval")) for name in alone)
    assert not (plain.folder / BEST).exists()
    assert weights_of(work.folder) == weights_of(work.folder).parent / finetune.WEIGHTS

    embed = Embedder(weights_of(work.folder), CPU, "fp32")
    query, gallery = store.rows_of("query"), store.rows_of("gallery")
    q, g = (Pass(store, lambda images, keys: embed(images).numpy(), 8, CPU, 1)(rows)[1] for rows in (query, gallery))
    labels = [values[rows] for values in (store.pids, store.camids) for rows in (query, gallery)]
    assert evaluate_retrieval(q, g, *labels).mAP == pytest.approx(facts["final_eval_mAP"], abs=1e-5)


def test_a_training_that_is_cut_off_by_a_look_ends_with_the_same_best_and_last(make, monkeypatch):
    whole, work = make("whole", evaluate_every=1)
    real = Look.__call__

    def cut_off(self, method, device, threads):
        look = real(self, method, device, threads)

        def wrapped(epochs):
            seen = look(epochs)
            if epochs == 2:
                raise KeyboardInterrupt  # the best is kept by then, its row is not written yet
            return seen

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(Look, "__call__", cut_off)
        with pytest.raises(KeyboardInterrupt):
            make("cut", evaluate_every=1)
    facts, resumed = make("cut", evaluate_every=1)
    for name in (finetune.WEIGHTS, BEST):
        found, expected = (load_file(one.folder / name) for one in (resumed, work))
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
    assert read_header(resumed.folder / BEST) == read_header(work.folder / BEST)
    rows = [looked_at(Journal(one.folder / "metrics.jsonl").history()) for one in (resumed, work)]
    assert rows[0] == rows[1] and len(rows[0]) == EPOCHS
    told = [name for name in whole if "eval" in name]
    assert {name: facts[name] for name in told} == {name: whole[name] for name in told}


def test_the_best_is_the_earlier_of_equals(tmp_path):
    made = []

    def save(path, method, **facts):
        made.append(facts["epochs"])
        torch.manual_seed(0)
        method, _ = finetune._Build(CONFIG, BACKBONE, 0, 5, 6, None, np.zeros(9))(CPU)
        finetune._save({}, path, method, **facts)

    best = Best(tmp_path / BEST, save)
    for epochs, mean_ap in enumerate((0.4, 0.3, 0.5, 0.5, 0.45), 1):
        replace(best)(None, epochs, {"eval_mAP": mean_ap, "eval_rank1": 0.5})
    assert made == [1, 3] and read_header(tmp_path / BEST)["epochs"] == 3


# What is told


def test_the_length_of_an_epoch_is_said_when_a_training_starts(make):
    facts, work = make(epochs=1, sampler="plain")
    steps = facts["images"] // 8
    assert f"warmup_epochs 0, steps_per_epoch {steps}, images_per_step 8\n" in work.screen.console.file.getvalue()
    assert work.run.parameters["resolved.steps_per_epoch"] == steps == facts["steps"]
    assert facts["images_seen"] == 8 * steps
