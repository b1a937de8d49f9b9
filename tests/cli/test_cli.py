"""Bad input at the command line: one line, exit status 2, nothing begun."""

import errno
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from rayreid import __version__
from rayreid.cli import main
from rayreid.config import Experiment, Source
from rayreid.data.store.store import Record, finish_store, write_shard
from rayreid.errors import UserError
from rayreid.execution.resources import Share
from rayreid.models.backbones import build_backbone
from rayreid.models.weights import save_backbone
from rayreid.pipeline.preflight import check_workers
from rayreid.stages import ingest

PLATFORM = Path(__file__).parents[2] / "platform"

SPLITS = ("train", "query", "gallery")
LOOKING = ("predict", "search", "compare", "matrix", "publish")

GOOD = {
    "name": "small",
    "pool": {"dataset": "synthetic", "options": {"part": "pool", "images": 8, "size": [32, 16]}},
    "target": {
        "dataset": "synthetic",
        "options": {"part": "target", "size": [32, 16], "identities": 2, "test_identities": 2},
    },
    "backbone": {"name": "vit_tiny", "depth": 1, "img_size": [32, 16]},
    "pretrain": {"batch_size": 4},
    "finetune": {"identities": 2},
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where outputs and data would be; Ray and MLflow refuse to be started."""
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    monkeypatch.setenv("RAYREID_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    (tmp_path / "data").mkdir()

    def refuse(*args, **kwargs):
        raise AssertionError("this was to be refused before anything starts")

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("rayreid.pipeline.experiment_runner.Tracker", refuse)
    return tmp_path


@pytest.fixture
def refused(home, capfd):
    """Run a command that must be refused; gives its one line."""

    def refused(command: str, tree: dict | str, *arguments: str) -> str:
        path = home / "experiment.yaml"
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
        with pytest.raises(SystemExit) as ended:
            main([command, str(path), *arguments])
        assert ended.value.code == 2
        shown = capfd.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("rayreid: ") and shown.err.endswith("\n")
        assert len(shown.err.splitlines()) == 1, shown.err
        assert not (home / "outputs").exists()
        assert list((home / "data").iterdir()) == []
        return shown.err

    return refused


def test_strategies_to_compare_are_those_there_are(refused):
    assert "'best'" in refused("selections", GOOD, "--strategy", "best")
    assert "nothing to compare" in refused("selections", {**GOOD, "pretrain": "none"}, "--strategy", "random")


def test_an_export_goes_to_a_folder_that_holds_nothing_else(refused, tmp_path):
    assert "--export xlsx: there is no such format" in refused("selections", GOOD, "--export", "xlsx")
    assert "--export-to x: say with --export" in refused("selections", GOOD, "--export-to", "x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    message = refused("selections", GOOD, "--export", "csv", "--export-to", str(tmp_path / "mine"))
    assert "holds files that are no export of rayreid" in message


def test_short_trainings_have_steps(refused):
    assert "--proxy-steps: pretrain.steps" in refused("selections", GOOD, "--proxy-steps", "0")


def test_a_row_to_compare_with_is_one_of_the_file(refused):
    tree = {**GOOD, "compare": [{"label": "none", "pretrain": "none"}, {"label": "half"}]}
    assert "--against whole: no row has this label; there are: none, half" in refused("run", tree, "--against", "whole")
    message = refused("run", {**GOOD, "sweep": {"parameters": {"seed": [0, 1]}}}, "--against", "half")
    assert "--against half: a sweep has no rows" in message


def test_a_ledger_is_a_csv_file_of_rows(refused):
    assert "--to ledger.txt: name it *.csv" in refused("ledger", GOOD, "--to", "ledger.txt")
    assert "is a sweep" in refused("ledger", {**GOOD, "sweep": {"parameters": {"seed": [0, 1]}}})


@pytest.mark.parametrize(
    ("change", "extra"),
    [
        ({"select": {"strategy": "cluster"}}, "faiss"),
        ({"adapt": {"method": "usl", "search": "approximate"}}, "faiss"),
        ({"sweep": {"search": "optuna", "trials": 2, "parameters": {"seed": [0, 1]}}}, "optuna"),
    ],
)
def test_a_feature_whose_extra_is_missing(refused, monkeypatch, home, change, extra):
    found = importlib.util.find_spec
    monkeypatch.setattr("rayreid.neighbours.knn.find_spec", lambda name: None if name == extra else found(name))
    monkeypatch.setitem(sys.modules, extra, None)
    message = refused("run", {**GOOD, **change})
    assert f"needs the extra rayreid[{extra}]: pip install {extra}" in message


@pytest.mark.parametrize("command", ["run", "matrix", "selections", "ledger"])
def test_seeds_that_a_row_gives_itself(refused, command):
    tree = {**GOOD, "seeds": [0, 1], "compare": [{"label": "a", "seed": 3}]}
    assert "compare[0]: seed=3, but seeds sets it in every row" in refused(command, tree)


# What the file says


@pytest.mark.parametrize("command", ["run", "sweep", "config", "pretrain", "evaluate", "selections", "matrix"])
def test_an_unknown_key(refused, command):
    message = refused(command, {**GOOD, "pretrain": {"epoch": 3}})
    assert "experiment.yaml" in message and "'pretrain.epoch'" in message and "'epochs'" in message


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("pretrain.epochs=many", "pretrain.epochs"),
        ("pretrain.lr=fast", "pretrain.lr"),
        ("select.fraction=half", "select.fraction"),
        ("backbone.img_size=64", "backbone.img_size"),
        ("select.fraction=0", "select.fraction"),
        ("select.fraction=1.5", "select.fraction"),
        ("select.fraction=-0.1", "select.fraction"),
        ("select.count=0", "select.count"),
        ("select.strategy=best", "select.strategy"),
        ("pretrain.warmup_epochs=101", "pretrain.warmup_epochs"),
        ("seed=-1", "seed"),
        ("adapt.eps=1", "adapt.eps"),
        ("evaluate.rerank.k1=2", "evaluate.rerank"),
        ("evaluate.rerank=often", "evaluate.rerank"),
        ("evaluate.rerank.weight=2", "evaluate.rerank.weight"),
        ("adapt.k1=0", "adapt.k1"),
        ("adapt={k1: 4, k2: 6}", "adapt.k2"),
        ("adapt=ssl", "adapt.method"),
    ],
)
def test_a_wrong_type_or_value(refused, change, key):
    message = refused("run", GOOD, change)
    assert "experiment.yaml" in message and f" {key}:" in message


def test_a_missing_experiment_file(home, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["run", str(home / "none.yaml")])
    assert ended.value.code == 2
    assert capfd.readouterr().err == f"rayreid: {home / 'none.yaml'}: no such experiment file\n"
    assert not (home / "outputs").exists()


def test_a_file_that_is_not_yaml(refused):
    assert "experiment.yaml: not valid YAML" in refused("run", "pool: {dataset: folder")


def test_a_row_with_a_fraction_outside_its_range(refused):
    message = refused("run", {**GOOD, "compare": [{}, {"select.fraction": 2}]})
    assert "compare[1]: select.fraction" in message


def test_a_sweep_with_a_fraction_outside_its_range(refused):
    for command in ("run", "sweep"):
        message = refused(command, {**GOOD, "sweep": {"parameters": {"select.fraction": [0.5, 2]}}})
        assert "sweep.parameters: select.fraction" in message


def test_a_sweep_without_parameters(refused):
    assert "sweep.parameters" in refused("sweep", GOOD)
    assert "sweep.parameters.seed" in refused("sweep", {**GOOD, "sweep": {"parameters": {"seed": []}}})


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"method": "usl", "k1": 1000}, "adapt.k1=1000, but the target's split train has only"),
        (
            {"method": "usl", "k1": 4, "k2": 2, "clusters": 33, "instances": 2},
            "adapt.clusters=33 cannot be dealt evenly",
        ),
        ({"method": "uda", "k1": 4, "k2": 2}, "say source:"),
    ],
)
def test_an_adaptation_that_could_only_fail(refused, adapt, message):
    assert message in refused("run", {**GOOD, "adapt": adapt, "resources": {"workers": 2}})


def test_a_source_that_is_not_there_or_too_small(refused, home):
    adapt = {"method": "uda", "k1": 4, "k2": 2}
    message = refused("run", {**GOOD, "adapt": adapt, "source": {"dataset": "market1501", "root": "nowhere"}})
    assert str(home / "data" / "nowhere") in message
    message = refused("adapt", {**GOOD, "adapt": adapt, "source": GOOD["target"], "finetune": {"identities": 3}})
    assert "finetune.identities=3, but the source's split train has only 2" in message


def test_a_stage_that_an_experiment_has_no_use_for(refused):
    assert "stage adapt" in refused("adapt", GOOD)


# What the file names


@pytest.mark.parametrize(
    ("command", "source"),
    [
        ("run", "pool"),
        ("run", "target"),
        ("ingest", "pool"),
        ("pretrain", "pool"),
        ("score", "pool"),
        ("select", "target"),
        ("finetune", "target"),
        ("adapt", "target"),
        ("evaluate", "target"),
    ],
)
def test_a_missing_dataset_folder(refused, home, command, source):
    message = refused(command, {**GOOD, source: {"dataset": "market1501", "root": "nowhere"}})
    assert str(home / "data" / "nowhere") in message


def test_a_missing_dataset_folder_in_a_sweep(refused, home):
    tree = {**GOOD, "pool": {"dataset": "folder", "root": "nowhere"}}
    message = refused("sweep", {**tree, "sweep": {"parameters": {"select.fraction": [0.5, 1.0]}}})
    assert str(home / "data" / "nowhere") in message


def test_an_unknown_dataset_and_an_unknown_option(refused):
    assert "'market1501'" in refused("run", {**GOOD, "target": {"dataset": "market1502"}})
    assert "'images'" in refused("run", {**GOOD, "pool": {"dataset": "synthetic", "options": {"imags": 3}}})


@pytest.mark.parametrize("option", ["root", "name", "self"])
def test_an_option_that_no_dataset_can_have(refused, option):
    message = refused("run", {**GOOD, "pool": {"dataset": "synthetic", "options": {"part": "pool", option: "x"}}})
    assert "dataset synthetic" in message and option in message


def test_an_empty_pool(refused, home):
    (home / "images").mkdir()
    message = refused("run", {**GOOD, "pool": {"dataset": "folder", "root": str(home / "images")}})
    assert str(home / "images") in message


def test_a_pool_that_holds_test_images(refused):
    pool = {**GOOD["target"], "options": {**GOOD["target"]["options"], "seed": 1}}
    message = refused("run", {**GOOD, "pool": pool})
    assert "pool: dataset synthetic" in message and "leak" in message
    assert "leak" in refused("run", {**GOOD, "pool": GOOD["target"]})  # the target itself


def test_test_images_in_a_pool_that_is_not_used_do_no_harm(home):
    path = home / "experiment.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "pool": GOOD["target"], "pretrain": "none"}))
    with pytest.raises(AssertionError, match="before anything starts"):
        main(["run", str(path)])


def test_more_identities_in_a_batch_than_the_target_has(refused):
    message = refused("run", GOOD, "finetune.identities=3")
    assert "finetune.identities=3" in message and "only 2 identities" in message
    assert "proxy.finetune.identities=3" in refused("run", GOOD, "proxy.finetune.identities=3")


def test_more_images_in_a_batch_than_the_target_has(refused):
    message = refused("run", GOOD, "finetune.sampler=plain", "finetune.instances=100")
    assert "finetune.identities=2 × finetune.instances=100 are more than the" in message


def test_looks_at_a_query_and_gallery_that_are_not_there(refused, home):
    listing = home / "source.csv"
    listing.write_text("path,pid,camid,split\n" + "".join(f"{n}.jpg,{n % 2},{n},train\n" for n in range(8)))
    source = {"dataset": "table", "root": str(listing)}
    tree = {**GOOD, "adapt": {"method": "uda", "k1": 4, "k2": 2, "clusters": 2}, "source": source}
    message = refused("run", tree, "finetune.evaluate_every=1", "proxy.finetune.evaluate_every=0")
    assert "finetune.evaluate_every=1, but the source has no query and gallery" in message


def stored(home: Path, **counts: int) -> None:
    """Make GOOD's pool a complete artifact of so many images of each split."""
    artifact = ingest.plan(home / "outputs", Source(**GOOD["pool"]))
    artifact.path.mkdir(parents=True)
    images = sum(counts.values())
    manifest = {"format": 2, "dataset": "folder", "version": "", "fingerprint": "", "read": images, "stored": images}
    manifest |= {"rejected": {}, "counts": counts, "identities": dict.fromkeys(counts, 0), "cameras": 0, "shards": []}
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    artifact.finish({})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["select.count=101"], "select.count=101"),
        (["pretrain.batch_size=101", "select.fraction=1.0"], "pretrain.batch_size=101"),
        (["pretrain.batch_size=51", "select.fraction=0.5"], "pretrain.batch_size=51"),
        (["pretrain.batch_size=31", "select.count=30"], "pretrain.batch_size=31"),
        (["proxy.pretrain.batch_size=101", "pretrain.batch_size=10"], "proxy.pretrain.batch_size=101"),
        (["pretrain.batch_size=50", "select.fraction=0.5"], None),
        (["pretrain.batch_size=100", "select.count=100"], None),
    ],
)
def test_more_images_than_a_stored_pool_has(home, capfd, changes, named):
    stored(home, pool=100)
    path = home / "experiment.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(SystemExit if named else AssertionError):
        main(["run", str(path), "pool.verify_source=never", *changes])
    assert (named or "") in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["pretrain.batch_size=8", "select.fraction=1.0"], None),
        (["pretrain.batch_size=9", "select.fraction=1.0"], ["pretrain.batch_size=9", "8 images"]),
        (["pretrain.batch_size=4", "select.fraction=0.5"], None),
        (
            ["pretrain.batch_size=5", "select.fraction=0.5"],
            ["pretrain.batch_size=5", "4 images", "select.fraction=0.5"],
        ),
        (["select.fraction=0.01"], ["select.fraction=0.01", "8 images", "none"]),
        (["pretrain.batch_size=1", "select.count=9"], ["select.count=9", "8 images"]),
        (["pretrain.batch_size=4", "proxy.pretrain.batch_size=9"], ["proxy.pretrain.batch_size=9", "8 images"]),
    ],
)
def test_more_images_than_a_pool_has_that_is_not_stored_yet(home, capfd, changes, named):
    path = home / "experiment.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(SystemExit if named else AssertionError):
        main(["run", str(path), *changes])
    message = capfd.readouterr().err
    assert all(part in message for part in named or ())


def test_of_a_pool_no_more_is_listed_than_matters(home, monkeypatch):
    listed = []

    def records(self):
        for number in range(1000):
            listed.append(number)
            yield Record(f"{number}.jpg", -1, -1, "pool", "")

    (home / "images").mkdir()
    monkeypatch.setattr("rayreid.data.datasets.folder.Folder.records", records)
    path = home / "experiment.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "pool": {"dataset": "folder", "root": str(home / "images")}}))
    with pytest.raises(AssertionError, match="before anything starts"):
        main(["run", str(path), "pretrain.batch_size=10", "select.fraction=0.5"])
    assert 20 <= len(listed) < 30


def test_a_list_of_fewer_images_than_a_batch(refused, home):
    path = home / "best.txt"
    path.write_text("a.jpg\nb.jpg\n")
    message = refused("run", GOOD, "select.strategy=list", f"select.list={path}", "pretrain.batch_size=4")
    assert "pretrain.batch_size=4" in message and "2 images" in message and "select.list" in message


def test_a_stored_pool_that_holds_test_images(home, capfd):
    stored(home, train=50, query=50)
    path = home / "experiment.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(SystemExit):
        main(["run", str(path), "pool.verify_source=never"])
    assert "leak" in capfd.readouterr().err


def test_a_target_with_an_empty_split(refused, home):
    root = home / "market"
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder).mkdir(parents=True)
    (root / "bounding_box_train" / "0001_c1s1_000001_00.jpg").write_bytes(b"")
    message = refused("run", {**GOOD, "target": {"dataset": "market1501", "root": str(root)}})
    assert str(root) in message and "'query'" in message


def one_camera(home: Path, query: str = "3") -> dict:
    """A target whose train split has nobody who is seen by two cameras; its queries are by another one, or not."""
    root = home / "market"
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder).mkdir(parents=True)
        for pid in (1, 2):
            camera = query if folder == "query" and query else pid
            for shot in (1, 2):
                (root / folder / f"{pid:04d}_c{camera}s1_{shot:06d}_00.jpg").write_bytes(b"")
    return {"dataset": "market1501", "root": str(root)}


@pytest.mark.parametrize("command", ["run", "evaluate", "matrix"])
def test_a_target_in_which_no_query_can_be_found(refused, home, command):
    tree = {**GOOD, "target": one_camera(home, query=""), "pretrain": "none"}
    message = refused(command, tree)
    assert "target" in message and "none of the 4 queries has a true match" in message
    for path in sorted((home / "market").glob("*/*_c2s1*")):
        path.rename(path.with_name(path.name.replace("_c2", "_c1")))
    message = refused(command, tree)
    assert "by camera 1, and only a match by another camera counts; set cameras: ignore" in message


def test_a_target_in_which_a_probe_finds_nobody(refused, home):
    tree = {**GOOD, "target": one_camera(home)}
    message = refused("pretrain", tree)
    assert "target: dataset market1501" in message and "pretrain.probe_every=0" in message
    assert "probe" in refused("run", tree, "pretrain.probe_every=0", "proxy.pretrain.probe_every=1")
    path = home / "experiment.yaml"
    for changes in (["pretrain.probe_every=0"], ["pretrain=none"]):
        with pytest.raises(AssertionError, match="before anything starts"):
            main(["run", str(path), *changes])


def test_a_stored_target_in_which_a_probe_finds_nobody(home, capfd):
    target = one_camera(home)
    artifact = ingest.plan(home / "outputs", Source(**target))
    records = [
        Record(f"{split}/{n}.jpg", n % 2, 5 if split == "query" else n % 2, split, "")
        for n in range(4)
        for split in SPLITS
    ]
    image = io.BytesIO()
    Image.new("RGB", (8, 16)).save(image, "JPEG")
    write_shard(artifact.path, 0, records, lambda record: image.getvalue(), "header")
    finish_store(artifact.path, 1, "market1501", "1")
    artifact.finish({})
    path = home / "experiment.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "target": target}))
    with pytest.raises(SystemExit):
        main(["run", str(path), "target.verify_source=never"])
    assert "pretrain.probe_every=0" in capfd.readouterr().err
    with pytest.raises(AssertionError, match="before anything starts"):
        main(["run", str(path), "target.verify_source=never", "pretrain.probe_every=0"])


def test_a_target_without_its_splits(refused, home):
    (home / "images").mkdir()
    (home / "images" / "a.jpg").write_bytes(b"")
    message = refused("run", {**GOOD, "target": {"dataset": "folder", "root": str(home / "images")}})
    assert "target: dataset folder" in message and "'train'" in message


@pytest.mark.parametrize(
    ("command", "changes", "named"),
    [
        ("run", ["backbone.stem=ibn"], "backbone stem 'ibn'"),
        ("finetune", ["backbone.stem=ibn"], "backbone stem 'ibn'"),
        ("run", ["backbone.name=vit_smal"], "'vit_small'"),
        ("run", ["backbone.name=swin_tiny", "backbone.stem=ics"], "'ics'"),
        ("run", ["backbone.img_size=[100, 50]"], "100x50"),
        ("run", ["proxy.backbone.stem=ibn"], "backbone stem 'ibn'"),
    ],
)
def test_a_backbone_that_cannot_be_built(refused, command, changes, named):
    assert named in refused(command, {**GOOD, "backbone": {"img_size": [32, 16]}}, *changes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("pretrain.local_size=[40, 32]", "pretrain.local_size=[40, 32]"),
        ("pretrain.accumulate=3", "pretrain.accumulate=3"),
        ("resources.workers=3", "resources.workers=3"),
        ("proxy.pretrain.batch_size=7", "resources.workers=2"),
        ("proxy.pretrain.local_size=[40, 32]", "proxy.pretrain.local_size=[40, 32]"),
        ("finetune.identities=1", "finetune.identities=1"),
    ],
)
def test_a_pre_training_that_no_worker_could_begin(refused, change, named):
    assert named in refused("run", {**GOOD, "resources": {"workers": 2}}, change)


@pytest.mark.parametrize(
    ("command", "changes", "named"),
    [
        ("run", ["pretrain.method=mocov2"], "pretrain.method mocov2 is not for backbone vit_tiny: SGD without warm-up"),
        ("pretrain", ["pretrain.method=mocov2"], "pretrain.method mocov2 is not for backbone vit_tiny"),
        ("run", ["pretrain.method=mocov3", "backbone.name=swin_tiny", "backbone.depth=null"], "for a Swin take moby"),
        (
            "run",
            ["pretrain.method=moby", "pretrain.queue=3"],
            "pretrain.queue=3 does not hold pretrain.batch_size=4 keys",
        ),
        (
            "run",
            ["finetune.checkpoint_activations=true", "backbone.name=resnet50", "backbone.depth=null"],
            "finetune.checkpoint_activations=true is for vit_* only, not resnet50",
        ),
        ("run", ["proxy.pretrain.method=mocov2"], "proxy.pretrain.method mocov2 is not for backbone vit_tiny"),
        (
            "run",
            ["pretrain.method=mocov3", "pretrain.local_crops=2"],
            "pretrain.local_crops: the method mocov3 has no use",
        ),
    ],
)
def test_a_method_that_does_not_suit_the_backbone_or_its_keys(refused, command, changes, named):
    tree = {**GOOD, "backbone": {**GOOD["backbone"], "img_size": [64, 32]}, "resources": {"workers": 1}}
    assert named in refused(command, tree, *changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pretrain": {"batch_size": 8, "accumulate": 2}}, r"pretrain.batch_size=8 .*\(3\) × pretrain.accumulate=2"),
        ({"finetune": {"identities": 2}}, r"finetune.identities=2 .*resources.workers=auto \(3\)"),
        ({"proxy": {"pretrain": {"batch_size": 12}, "finetune": {"identities": 2}}}, "proxy.finetune.identities=2"),
        ({"finetune": {"identities": 2, "sampler": "plain"}}, r"finetune.identities=2 × finetune.instances=4 .*\(3\)"),
        ({}, None),
    ],
)
def test_a_batch_that_cannot_be_dealt_to_the_workers_that_there_are(monkeypatch, changes, named):
    monkeypatch.setattr("rayreid.pipeline.preflight.training_share", lambda resources: Share(3, 1, True))
    three = {"pretrain": {"batch_size": 12}, "finetune": {"identities": 3}}
    experiment = Experiment.model_validate({**GOOD, **three, "proxy": three, **changes})
    if named is None:
        check_workers([experiment])
        return
    with pytest.raises(UserError, match=named):
        check_workers([experiment])


def test_a_backbone_of_a_row_that_cannot_be_built(refused):
    assert "'ibn'" in refused("run", {**GOOD, "compare": [{}, {"backbone.stem": "ibn"}]})


def test_weights_of_another_architecture(refused, home):
    path = home / "deeper.safetensors"
    save_backbone(path, build_backbone("vit_tiny", depth=2, img_size=(32, 16)), (0.5,) * 3, (0.5,) * 3)
    message = refused("run", GOOD, f"backbone.weights={path}")
    assert str(path) in message and "vit_tiny" in message and "blocks.1" in message


def test_weights_that_are_not_there_or_none(refused, home):
    assert str(home / "data" / "none.pth") in refused("run", GOOD, "backbone.weights=none.pth")
    (home / "text.pth").write_text("no weights")
    assert str(home / "text.pth") in refused("run", GOOD, f"backbone.weights={home / 'text.pth'}")


def test_a_missing_file_list(refused, home):
    message = refused("run", GOOD, "select.strategy=list", "select.list=best.txt")
    assert str(home / "data" / "best.txt") in message and "select.list" in message
    assert "select.list" in refused("select", GOOD, "select.strategy=list")


@pytest.mark.parametrize(("name", "content"), [("best.txt", "\n"), ("best.json", "[]"), ("best.pkl", "x"), ("", None)])
def test_a_file_list_that_cannot_be_read(refused, home, name, content):
    (home / "lists").mkdir()
    path = home / "lists" / name
    if content is not None:
        path.write_text(content)
    message = refused("run", GOOD, "select.strategy=list", f"select.list={path}")
    assert str(path) in message


def test_a_missing_provenance_file(refused, home):
    message = refused("run", GOOD, "pool.provenance=origins.csv", "pool.relevant=market1501")
    assert str(home / "data" / "origins.csv") in message and "pool.provenance" in message
    assert "pool.relevant" in refused("run", GOOD, "pool.provenance=origins.csv")


def test_a_provenance_file_that_cannot_judge(refused, home):
    path = home / "origins.csv"
    for content in ("", "key,from\na.jpg,market1501\n", "key,origin\na.jpg,msmt17\n"):
        path.write_text(content)
        assert str(path) in refused("run", GOOD, f"pool.provenance={path}", "pool.relevant=market1501")


def test_a_source_proxy_that_is_not_pre_trained(refused):
    assert "proxy.pretrain.method" in refused("run", GOOD, "proxy.pretrain=none")


def test_a_stage_for_which_the_experiment_has_no_use(refused):
    message = refused("score", GOOD, "select.fraction=1.0")
    assert "score" in message and "'small'" in message


def test_relative_places_inside_a_job(refused, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAYREID_ROOT", "outputs")
    assert "RAYREID_ROOT" in refused("run", GOOD)


def test_an_output_root_that_cannot_be_made(refused, home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("RAYREID_ROOT", str(home / "file" / "outputs"))
    message = refused("run", GOOD)
    assert str(home / "file" / "outputs") in message and "RAYREID_ROOT" in message


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EACCES, "access is refused"), (errno.EROFS, "access is"), (errno.ENOSPC, "no room")],
)
def test_an_output_root_that_cannot_be_written(home, monkeypatch, capfd, code, words):
    def refuse(dir):
        raise OSError(code, os.strerror(code), f"{dir}/tmp0123")

    path = home / "experiment.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(path)])
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"rayreid: {home / 'outputs'}: {words}")


def test_good_input_is_not_refused(home):
    path = home / "experiment.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(AssertionError, match="before anything starts"):
        main(["run", str(path)])


# The command itself


def test_an_error_of_the_program_keeps_its_traceback(home, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr("rayreid.config.loading.load_experiment", fail)
    with pytest.raises(ZeroDivisionError):
        main(["config", "x.yaml"])


def test_ctrl_c_is_told_in_one_line_with_its_own_status(monkeypatch, capsys):
    def interrupted(*of, **rest):
        raise KeyboardInterrupt

    monkeypatch.setattr("rayreid.config.loading.load_experiment", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["config", "x.yaml"])
    assert ended.value.code == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "rayreid: interrupted; run the same command again to resume"


def test_ctrl_c_is_answered_at_once_whoever_handles_it(monkeypatch, capsys):
    """As Ray Tune does: its handler puts the signal down, and sees to it later."""
    seen = []

    def handled_by_another(*of, **rest):
        before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        try:
            signal.raise_signal(signal.SIGINT)
            until = time.monotonic() + 5
            while not (said := capsys.readouterr().err) and time.monotonic() < until:
                time.sleep(0.01)
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)
        assert seen == [signal.SIGINT] * 2 and said == "rayreid: stopping; this may take half a minute\n"
        raise UserError("looked at")

    monkeypatch.setattr("rayreid.config.loading.load_experiment", handled_by_another)
    threads = threading.active_count()
    with pytest.raises(SystemExit):
        main(["config", "x.yaml"])
    assert capsys.readouterr().err == "rayreid: looked at\n"
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1


def test_a_users_error_that_comes_from_a_ray_task_is_unwrapped(home, monkeypatch, capfd):
    class TaskError(RuntimeError):
        cause = UserError("a.jpg: look here")

    def fail(*args):
        raise TaskError("a long remote traceback\nof many lines")

    monkeypatch.setattr("rayreid.config.loading.load_experiment", fail)
    with pytest.raises(SystemExit) as ended:
        main(["config", "x.yaml"])
    assert ended.value.code == 2
    assert capfd.readouterr().err == "rayreid: a.jpg: look here\n"


def test_a_full_disk_is_told_in_one_line(home, monkeypatch, capfd):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device", str(home / "page" / "index.html"))

    monkeypatch.setattr("rayreid.config.loading.load_experiment", fail)
    with pytest.raises(SystemExit) as ended:
        main(["config", "x.yaml"])
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"rayreid: {home / 'page'}: no room is left on this disk")
    with pytest.raises(OSError):
        main(["config", "x.yaml", "--debug"])


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_log_of_another_encoding_gets_replaced_symbols(home, encoding):
    tree = {**GOOD, "name": "ü人"}
    (home / "ü.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    program = "import sys; from rayreid.cli import main; main(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM), "PYTHONIOENCODING": encoding}
    for arguments in (["config", str(home / "ü.yaml")], ["run", str(home / "人.yaml")]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, env=environment)
        assert b"Traceback" not in done.stderr and done.returncode == (0 if arguments[0] == "config" else 2)
    assert done.stderr.splitlines()[-1].endswith(b"?.yaml: no such experiment file")


def test_config_prints_the_resolved_experiment(home, capfd):
    path = home / "experiment.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(SystemExit) as ended:
        main(["config", str(path), "pretrain.epochs=3"])
    assert not ended.value.code
    shown = yaml.safe_load(capfd.readouterr().out)
    assert shown["pretrain"]["epochs"] == shown["proxy"]["pretrain"]["epochs"] == 3
    assert shown["finetune"]["epochs"] == 120


def test_version(home, capfd):
    with pytest.raises(SystemExit):
        main(["version"])
    assert capfd.readouterr().out.strip() == __version__


def python(*arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120)


def test_debug_shows_the_traceback():
    quiet, debug = (python("-m", "rayreid.cli", "run", "none.yaml", *more) for more in ([], ["--debug"]))
    assert quiet.returncode == 2
    assert quiet.stderr == "rayreid: none.yaml: no such experiment file\n"
    assert debug.returncode not in (0, 2)
    assert "Traceback" in debug.stderr and "UserError: none.yaml: no such experiment file" in debug.stderr


def test_a_value_called_debug_is_not_the_option(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "none.yaml", "--", "--debug"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "rayreid: none.yaml: no such experiment file\n"


def test_help_is_quick_and_names_the_commands():
    program = (
        "import sys\nfrom rayreid.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "assert not {'torch', 'ray', 'mlflow', 'pyarrow'} & set(sys.modules), 'help imports too much'"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    for command in (
        "run",
        "sweep",
        "ingest",
        "pretrain",
        "score",
        "select",
        "finetune",
        "adapt",
        "evaluate",
        "config",
        "ledger",
        *LOOKING,
    ):
        assert f" {command} " in done.stdout


def test_the_traceback_of_a_mistake_of_ours_hides_credentials():
    """Typer replaces the hook that prints it."""
    failing = """
from rayreid.cli import app, main

@app.command()
def fail():
    raise RuntimeError("mysql://user:secret-word@host/database")

main(["fail"])
"""
    done = subprocess.run([sys.executable, "-c", failing], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "Traceback" in done.stderr and "mysql://" in done.stderr
    assert "secret-word" not in done.stderr
