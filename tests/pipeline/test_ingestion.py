"""Stores that are compared with their files at the start, and checked again before anything is trained; without Ray."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rayreid.config import Experiment, Source
from rayreid.config.loading import change
from rayreid.console import Screen
from rayreid.data.datasets import location, open_source
from rayreid.data.store.index import finish_store
from rayreid.data.store.listing import deal, write_part
from rayreid.data.store.witness import write_witness
from rayreid.errors import UserError
from rayreid.pipeline import ingestion
from rayreid.pipeline.graph import plan
from rayreid.pipeline.ingestion import leaked_images, make_stores
from rayreid.pipeline.preflight import check
from rayreid.pipeline.summary import TEST_IMAGES, row_of, show_table
from rayreid.stages import ingest
from rayreid.storage.artifacts import Artifact
from tiny_experiment import TINY


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 32, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def data(tmp_path) -> Path:
    """A pool of forty images, and a target of two identities by two cameras in each split."""
    for number in range(40):
        (tmp_path / "pool").mkdir(exist_ok=True)
        (tmp_path / f"pool/{number:02d}.jpg").write_bytes(jpeg(number))
    for first, folder in enumerate(("bounding_box_train", "query", "bounding_box_test")):
        (tmp_path / "target" / folder).mkdir(parents=True)
        for number in range(8):
            name = f"{number % 2 + 1:04d}_c{number // 2 % 2 + 1}s1_{number:06d}_00.jpg"
            (tmp_path / "target" / folder / name).write_bytes(jpeg(100 * (first + 1) + number))
    return tmp_path


@pytest.fixture
def experiment(data) -> Experiment:
    tree = {**TINY, "pool": {"dataset": "folder", "root": str(data / "pool")}, "select": {"fraction": 1.0}}
    tree["target"] = {"dataset": "market1501", "root": str(data / "target")}
    tree["finetune"] = {**TINY["finetune"], "identities": 2}
    return Experiment.model_validate(tree)


def store(artifact: Artifact, source: Source) -> Artifact:
    """Do what an ingest does, in this process."""
    artifact.path.mkdir(parents=True)
    dataset = open_source(source)
    write_witness(artifact.path, dataset.sources(), location(source))
    parts = [
        write_part(artifact.path, n, part, dataset.read, "decode") for n, part in enumerate(deal(dataset.records()))
    ]
    manifest = finish_store(artifact.path, len(parts), dataset.name, dataset.version, dataset.ignored)
    artifact.finish({"dataset": dataset.name, "images": manifest["stored"], "seconds": 0})
    return artifact


@pytest.fixture
def stored(experiment, tmp_path) -> dict[str, Artifact]:
    """The experiment's graph, with its stores."""
    graph = plan(experiment, tmp_path / "outputs")
    for role, source in (("pool", experiment.pool), ("target", experiment.target)):
        store(graph[role], source)
    return graph


def changed(experiment: Experiment, role: str, **fields) -> Experiment:
    return experiment.model_copy(update={role: getattr(experiment, role).model_copy(update=fields)})


def refusal(experiment: Experiment, root: Path, screen: Screen | None = None) -> str:
    try:
        check([experiment], {"": plan(experiment, root)}, screen)
    except UserError as error:
        return str(error)
    return ""


def test_a_store_whose_files_are_the_same_is_used(experiment, stored, tmp_path):
    assert refusal(experiment, tmp_path / "outputs") == ""


def test_changed_files_are_refused_until_the_revision_says_that_they_are_meant(experiment, stored, data, tmp_path):
    root = tmp_path / "outputs"
    (data / "pool/more.jpg").write_bytes(jpeg(999))
    (data / "pool/00.jpg").unlink()
    told = refusal(experiment, root)
    assert told.startswith(f"pool: {data / 'pool'} changed since it was ingested: 1 added (first more.jpg), 1 removed")
    assert "pool.revision=1" in told and "pool.verify_source=never" in told and "\n" not in told
    assert refusal(changed(experiment, "pool", verify_source="never"), root) == ""
    again = changed(experiment, "pool", revision=1)
    assert refusal(again, root) == ""
    assert plan(again, root)["pool"].id != stored["pool"].id
    assert "target" not in told and plan(again, root)["target"].id == stored["target"].id


def test_a_target_whose_names_changed_is_refused_by_its_own_key(experiment, stored, data, tmp_path):
    old = next((data / "target/query").glob("0001_c1*"))
    old.rename(old.with_name(old.name.replace("0001_c1", "0002_c1")))
    assert "set target.revision=1" in refusal(experiment, tmp_path / "outputs")


def test_other_data_under_the_same_relative_root_are_refused(experiment, data, tmp_path, monkeypatch):
    here = changed(changed(experiment, "pool", root="pool"), "target", root="target")
    monkeypatch.setenv("RAYREID_DATA", str(data))
    graph = plan(here, tmp_path / "outputs")
    for role, source in (("pool", here.pool), ("target", here.target)):
        store(graph[role], source)
    shutil.copytree(data / "pool", tmp_path / "b/pool")
    shutil.copytree(data / "target", tmp_path / "b/target")
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path / "b"))
    assert refusal(here, tmp_path / "outputs") == ""  # a copy is the same
    (tmp_path / "b/pool/00.jpg").write_bytes(jpeg(500))
    monkeypatch.setenv("RAYREID_DATA", str(data))
    assert refusal(here, tmp_path / "outputs") == ""
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path / "b"))
    told = refusal(here, tmp_path / "outputs")
    assert "at least 1 changed (first 00.jpg)" in told and f"it was read from {data / 'pool'}" in told


def test_a_store_whose_files_are_gone_is_used_and_said_so(experiment, stored, data, tmp_path):
    shutil.rmtree(data / "pool")
    printed = io.StringIO()
    assert refusal(experiment, tmp_path / "outputs", Screen(Console(file=printed, width=500))) == ""
    assert "does not exist; its store" in printed.getvalue() and "without a comparison" in printed.getvalue()


def produced(made: list[str], sources: dict[str, Source]):
    """Stand in for `produce`: ingest in this process."""

    def produce(artifact, run, screen, tags):
        made.append(str(artifact))
        return artifact if artifact.complete else store(artifact, sources[artifact.id])

    return produce


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Ingests the datasets of an experiment, or of some of its roles; returns the artifacts that were asked for."""

    def make(experiment: Experiment, *roles: str) -> list[str]:
        graph = plan(experiment, tmp_path / "outputs")
        made: list[str] = []
        sources = {graph[role].id: getattr(experiment, role) for role in ("pool", "target")}
        named = {f"target.{one.label}": one.source for one in experiment.score.targets}
        sources |= {graph[role].id: source for role, source in named.items() if role in graph}
        monkeypatch.setattr(ingestion, "produce", produced(made, sources))
        wanted = [graph[role] for role in roles or graph]
        make_stores(wanted, {"t": experiment}, {"t": graph}, SimpleNamespace(), Screen(), {})
        return made

    return make


def test_all_datasets_are_ingested_and_nothing_else(experiment, make):
    assert {one.partition("/")[0] for one in make(experiment)} == {"ingest"} and len(make(experiment)) == 2


def test_a_pool_too_small_after_rejections_is_refused_before_training(experiment, data, make, tmp_path):
    for number in range(10):
        (data / f"pool/{number:02d}.jpg").write_bytes(b"<html>")
    assert refusal(experiment, tmp_path / "outputs") == ""  # the listing has forty
    with pytest.raises(UserError, match=r"pretrain\.batch_size=32 is more than the 30 images"):
        make(experiment)


def test_a_split_lost_to_rejections_is_refused_before_training(experiment, data, make):
    for path in (data / "target/query").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image of split 'query'"):
        make(experiment)


def test_a_pool_with_the_target_s_test_images_is_refused(experiment, data, make):
    for folder in ("query", "bounding_box_test", "bounding_box_train"):
        for path in sorted((data / "target" / folder).iterdir())[:2]:
            shutil.copy(path, data / f"pool/{folder}-{path.name}")
    with pytest.raises(UserError, match=r"4 query and gallery images of the target, byte for byte.*allow_test_images"):
        make(experiment)
    make(changed(experiment, "pool", allow_test_images=True))


@pytest.fixture
def similar(experiment, data):
    """The experiment that selects by similarity to a folder of images without labels, `cameras`."""
    (data / "cameras").mkdir()
    for number in range(3):
        (data / f"cameras/{number}.jpg").write_bytes(jpeg(900 + number))
    target = {"dataset": "folder", "root": str(data / "cameras"), "name": "cameras"}
    selecting = {"select.strategy": "target_similarity", "select.fraction": 0.9, "score.targets": [target]}
    return change(experiment, {**selecting, "proxy.pretrain.batch_size": 32})


def test_selecting_by_the_target_s_test_images_is_refused(similar, data, make):
    make(similar)
    shutil.copy(next((data / "target/query").iterdir()), data / "cameras/leak.jpg")
    shutil.copy(next((data / "target/bounding_box_train").iterdir()), data / "cameras/no_leak.jpg")
    with pytest.raises(UserError, match=r"score target cameras: 1 of its images are query and gallery images of the"):
        make(change(similar, {"score.targets.0.revision": 1}))


def test_a_pool_is_not_compared_with_itself(similar, data, tmp_path):
    assert refusal(similar, tmp_path / "outputs") == ""
    itself = change(similar, {"score.targets.0.root": str(data / "pool")})
    assert "score target cameras: dataset folder is the pool itself" in refusal(itself, tmp_path / "outputs")


def test_a_pre_training_alone_is_refused_a_pool_with_test_images(experiment, stored, data, make):
    blind = experiment.model_copy(update={"pretrain": experiment.pretrain.model_copy(update={"probe_every": 0})})
    shutil.copy(next((data / "target/query").iterdir()), data / "pool/leak.jpg")
    leaking = changed(changed(blind, "pool", revision=1), "target", revision=1)
    with pytest.raises(UserError, match=r"1 query and gallery images of the target, byte for byte"):
        make(leaking, "weights")


def test_weights_that_exist_need_no_target(experiment, make, tmp_path):
    weights = plan(experiment, tmp_path / "outputs")["weights"]
    weights.path.mkdir(parents=True)
    weights.finish({})
    assert len(make(experiment, "weights")) == 1


def test_results_of_a_pool_with_test_images_are_marked(experiment, stored, data, tmp_path):
    path = next((data / "target/query").iterdir())
    shutil.copy(path, data / "pool/leak.jpg")
    allowed = changed(experiment, "pool", revision=1, allow_test_images=True)
    graph = plan(allowed, tmp_path / "outputs")
    store(graph["pool"], allowed.pool)
    assert leaked_images(graph["pool"], graph["target"]) == 1 and leaked_images(stored["pool"], stored["target"]) == 0
    assert plan(changed(allowed, "pool", allow_test_images=False), tmp_path / "outputs")["pool"].id == graph["pool"].id
    scores = {"mAP": 0.5, "rank1": 0.5, "rank5": 0.5, "rank10": 0.5, "mINP": 0.5}
    for role in ("weights", "model", "metrics"):
        graph[role].path.mkdir(parents=True)
        graph[role].finish({**scores, "images": 40, "steps": 1, "seconds": 1})
    row = row_of("mine", allowed, graph)
    assert row.metrics()[TEST_IMAGES] == 1
    assert TEST_IMAGES not in row_of("mine", allowed, {**graph, "pool": stored["pool"]}).metrics()
    printed = io.StringIO()
    show_table(Screen(Console(file=printed, width=200)), [row])
    assert "mine †" in printed.getvalue()
    assert "† mine: its pool holds 1 of the target's test images" in printed.getvalue()


def test_a_store_that_is_missing_leaks_nothing_yet(experiment, tmp_path):
    graph = plan(experiment, tmp_path / "outputs")
    assert leaked_images(graph["pool"], graph["target"]) == 0
    assert ingest.plan(tmp_path, experiment.pool).id == graph["pool"].id
