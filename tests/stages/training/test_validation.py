"""What a user does with trained models: predict, search, compare, matrix, on drawn pedestrians."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from rayreid.config.loading import load_experiment
from rayreid.data.store.feature_file import read_features
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.inference.compare import compare
from rayreid.inference.model import Model
from rayreid.inference.named_inputs import find_artifact, find_model, output_file
from rayreid.inference.predict import predict
from rayreid.inference.search import search
from rayreid.models.backbones import build_backbone
from rayreid.models.weights import save_backbone
from rayreid.paths import output_root
from rayreid.pipeline.matrix import matrix
from tiny_experiment import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SIZE = (64, 32)


@pytest.fixture(scope="module")
def place(root, shared_ray, tmp_path_factory) -> Path:
    """A folder with two models' weights and a matrix of them on two drawn targets."""
    folder = tmp_path_factory.mktemp("given")
    for number, name in enumerate(("one", "two")):
        torch.manual_seed(number)
        backbone = build_backbone("vit_tiny", depth=1, img_size=SIZE)
        save_backbone(folder / f"{name}.safetensors", backbone, (0.5,) * 3, (0.5,) * 3)
    options = TINY["target"]["options"]
    tree = {
        **TINY,
        "pretrain": "none",
        "evaluate": {"rerank": {"k1": 4, "k2": 2}},
        "matrix": {
            "rows": False,
            "models": {name: str(folder / f"{name}.safetensors") for name in ("one", "two")},
            "targets": [TINY["target"], {"name": "other", **TINY["target"], "options": {**options, "seed": 5}}],
        },
    }
    (folder / "matrix.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.fixture(scope="module")
def cells(place):
    return matrix(load_experiment(place / "matrix.yaml"))


def test_the_matrix_holds_every_model_on_every_target(cells):
    assert [(cell.model, cell.target) for cell in cells] == [
        (model, target) for model in ("one", "two") for target in ("synthetic", "other")
    ]
    [table] = output_root().glob("experiments/tiny-*/matrix.json")
    content = json.loads(table.read_text())
    assert [row["mAP"] for row in content] == [cell.artifact.facts["mAP"] for cell in cells]
    assert all(row["edition"].startswith("synthetic") and "mAP_rerank" in row for row in content)
    with table.with_suffix(".csv").open() as file:
        assert [float(row["rank1"]) for row in csv.DictReader(file)] == [row["rank1"] for row in content]
    assert table.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_an_evaluation_keeps_queries_and_figures(cells):
    artifact = cells[0].artifact
    drawn = {path.stem for path in (artifact.path / "figures").iterdir()}
    assert drawn == {"cmc", "ranked_best", "ranked_worst", "ranked_random", "attention"}
    table = pq.read_table(artifact.path / "queries.parquet").to_pydict()
    facts = artifact.facts
    for end in ("", "_rerank"):
        assert np.nanmean(table[f"average_precision{end}"]) == pytest.approx(facts[f"mAP{end}"])
        first = np.array(table[f"first_match{end}"])
        assert (first[first > 0] <= 5).mean() == pytest.approx(facts[f"rank5{end}"])
    assert facts["copies_in_gallery"] == 0 and facts["queries"] + facts["skipped_queries"] == len(table["key"])


def test_two_models_are_compared_on_the_same_queries_only(cells, tmp_path):
    of = {(cell.model, cell.target): cell.artifact for cell in cells}
    first, second = of["one", "synthetic"], of["two", "synthetic"]
    result = compare(str(first), str(second.path), str(tmp_path / "c.png"))
    assert result.difference == pytest.approx(second.facts["mAP"] - first.facts["mAP"])
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    for other, words in [
        (of["two", "other"], "different targets"),
        (first, "same evaluation"),
        (first.inputs["target"], "of stage ingest"),
        ("evaluate/0000", "no artifact there"),
    ]:
        with pytest.raises(UserError, match=words):
            compare(str(first), str(other), str(tmp_path / "no.png"))
    assert not (tmp_path / "no.png").exists()


@pytest.fixture(scope="module")
def store(cells):
    return ImageStore(cells[0].artifact.inputs["target"].path)


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    """The gallery as files, two of them broken."""
    folder = tmp_path_factory.mktemp("gallery")
    for row in store.rows_of("gallery"):
        (folder / Path(store.keys[row]).name).write_bytes(bytes(store.encoded(row)))
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "empty.jpg").write_bytes(b"")
    return folder


def test_a_folder_s_features_are_those_of_the_store(place, store, folder, tmp_path):
    model = str(place / "one.safetensors")
    mine, theirs = (tmp_path / f"{name}.parquet" for name in ("folder", "store"))
    predict(model, str(folder), str(mine))
    predict(model, str(store.directory), str(theirs), split="gallery")
    files, stored = read_features(mine), read_features(theirs)
    assert files.keys.tolist() == sorted(path.name for path in folder.iterdir() if path.stem not in ("broken", "empty"))
    by_name = {Path(key).name: i for i, key in enumerate(stored.keys)}
    order = [by_name[key] for key in files.keys]
    np.testing.assert_allclose(files.features, stored.features[order], rtol=1e-4, atol=1e-5)
    paths = [folder / key for key in files.keys]
    np.testing.assert_allclose(Model.load(model).embed(paths, unit=False), files.features, rtol=1e-4, atol=1e-5)
    assert (files.pids == -1).all() and stored.pids.max() > 0 and set(stored.splits) == {"gallery"}
    assert files.header["weights"] == find_model(model).checksum
    lines = (tmp_path / "folder.undecodable.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["key", "broken.jpg", "empty.jpg"] and "zero-size" in lines[2]
    assert not (tmp_path / "store.undecodable.tsv").exists()


def test_a_search_finds_the_query_itself_in_store_folder_and_features(place, store, folder, tmp_path):
    model, features = str(place / "one.safetensors"), str(tmp_path / "f.parquet")
    predict(model, str(folder), features)
    query = sorted(folder.glob("*.jpg"))[3]
    found = {}
    for name, gallery in (("folder", folder), ("features", features), ("store", store.directory)):
        picture = tmp_path / f"{name}.png"
        [found[name]] = search([str(query)], str(gallery), model, 4, str(picture))
        assert picture.read_bytes()[:4] == b"\x89PNG"
    assert found["features"].keys == found["folder"].keys and found["folder"].keys[0] == query.name
    assert found["folder"].scores[0] == pytest.approx(1, abs=1e-4) and len(found["folder"].keys) == 4
    assert Path(found["store"].keys[0]).name == query.name and found["store"].pids[0] >= 0
    with pytest.raises(UserError, match="features of other weights"):
        search([str(query)], features, str(place / "two.safetensors"), 4, str(tmp_path / "no.png"))
    folder.rename(tmp_path / "moved")
    query = tmp_path / "moved" / query.name
    with pytest.raises(UserError, match="--images"):
        search([str(query)], features, model, 4, str(tmp_path / "no.png"))
    search([str(query)], features, model, 100, str(tmp_path / "moved.png"), images=str(tmp_path / "moved"))
    (tmp_path / "moved").rename(folder)


def test_what_cannot_be_looked_for_is_refused(place, store, tmp_path):
    model, out = str(place / "one.safetensors"), str(tmp_path / "s.png")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "foreign.pth").write_bytes(b"")
    (tmp_path / "none").mkdir()
    for arguments, words in [
        ((["gone.jpg"], str(store.directory), model), "query gone.jpg: cannot be read"),
        (([str(tmp_path / "bad.jpg")], str(store.directory), model), "cannot be decoded"),
        (([], str(tmp_path / "none"), str(tmp_path / "foreign.pth")), "weights convert"),
        (([], str(tmp_path / "none"), "finetune/0000"), "no artifact there"),
        (([], str(tmp_path / "none"), str(tmp_path / "none")), "no artifact.json"),
    ]:
        with pytest.raises(UserError, match=words):
            search(*arguments, 4, out)
    with pytest.raises(UserError, match="no folder"):
        output_file(str(tmp_path / "gone" / "x.png"), "--out", (".png",))
    with pytest.raises(UserError, match=r"\*\.parquet"):
        predict(model, str(store.directory), str(tmp_path / "f.csv"))
    with pytest.raises(UserError, match="no image of split 'val'"):
        predict(model, str(store.directory), str(tmp_path / "f.parquet"), split="val")


def test_a_model_that_diverged_gives_no_features(place, store, tmp_path):
    backbone = build_backbone("vit_tiny", depth=1, img_size=SIZE)
    backbone.norm.weight.data[:] = float("nan")
    save_backbone(tmp_path / "nan.safetensors", backbone, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match="weights that are not finite"):
        predict(str(tmp_path / "nan.safetensors"), str(store.directory), str(tmp_path / "f.parquet"))
    assert not (tmp_path / "f.parquet").exists()


def test_an_artifact_is_found_by_its_folder_or_name(cells):
    artifact = cells[0].artifact
    assert find_artifact(str(artifact)).folder == find_artifact(str(artifact.path)).folder == artifact.path
    assert find_model(str(artifact.inputs["model"])).weights.name == "model.safetensors"
