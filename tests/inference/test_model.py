import numpy as np
import pytest
import torch
from PIL import Image

from rayreid import Model, UserError
from rayreid.data.batch import ImageBatch
from rayreid.data.store.feature_file import FeatureTable, write_features
from rayreid.files import checksum
from rayreid.inference.model import device_named
from rayreid.models.backbones import build_backbone
from rayreid.models.embedding import Embedder
from rayreid.models.neck import Neck
from rayreid.models.weights import save_backbone
from rayreid.storage.artifacts import Artifact
from small_store import small_store

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "ours.safetensors"
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", img_size=(64, 32), depth=1)
    neck = Neck(torch.rand(192) + 0.5, torch.randn(192))
    save_backbone(path, backbone, HALF, HALF, neck=neck, method="cluster contrast, usl", epochs=2)
    return path


@pytest.fixture(scope="module")
def model(weights):
    return Model.load(weights, device="cpu")


@pytest.fixture(scope="module")
def pictures():
    """Images of three sizes, more than one part of a batch has."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (40 + 9 * (i % 3), 20, 3), dtype=np.uint8) for i in range(21)]


def test_features_are_those_of_evaluations(model, weights, pictures):
    expected = Embedder(weights, torch.device("cpu"), "fp32")(ImageBatch.collate(pictures)).numpy()
    raw = model.embed(pictures, unit=False)
    assert raw.shape == (21, 192) == (len(pictures), model.dimensions)
    assert raw.dtype == np.float32
    np.testing.assert_allclose(raw, expected, atol=1e-5)
    unit = model.embed(pictures)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(model.embed(pictures, batch_size=4), unit, atol=1e-5)
    np.testing.assert_allclose(model.embed(pictures[3]), unit[3:4], atol=1e-5)


def test_a_folder_and_its_files_have_the_same_features(model, pictures, tmp_path):
    for number in (2, 0, 1):
        Image.fromarray(pictures[number]).save(tmp_path / f"{number}.png")
    names = [tmp_path / f"{number}.png" for number in range(3)]
    folder = model.embed(tmp_path)
    assert model.keys(tmp_path) == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(folder, model.embed(names))
    np.testing.assert_allclose(folder, model.embed(pictures[:3]), atol=1e-6)
    assert model.keys([*names[:1], pictures[1]]) == [str(names[0]), "1"]


def test_the_model_says_what_it_is(model, weights):
    assert (model.path, model.size, model.device.type) == (weights, (64, 32), "cpu")
    assert model.facts["method"] == "cluster contrast, usl"
    assert repr(model) == "<rayreid.Model vit_tiny, 64x32 pixels to 192 values, on cpu>"


def test_a_search_ranks_by_cosine_similarity(model, pictures):
    found = model.search(gallery=pictures, query=pictures[4:6], k=3)
    assert found.columns.tolist() == ["query", "rank", "key", "similarity", "pid", "camid"]
    assert found["query"].tolist() == ["0"] * 3 + ["1"] * 3
    assert found["rank"].tolist() == [1, 2, 3] * 2
    first = found[found["rank"] == 1]
    assert first["key"].tolist() == ["4", "5"]
    np.testing.assert_allclose(first["similarity"], 1, atol=1e-5)
    assert (found[["pid", "camid"]] == -1).all(axis=None)
    unit = model.embed(pictures)
    best = np.argsort(-(unit @ unit[4]), kind="stable")[:3]
    assert found["key"][:3].tolist() == [str(row) for row in best]


def test_features_take_the_place_of_images_in_a_search(model, pictures):
    expected = model.search(gallery=pictures, query=pictures[:2], k=4)
    for unit in (True, False):
        gallery, query = model.embed(pictures, unit=unit), model.embed(pictures[:2], unit=unit)
        found = model.search(gallery=gallery, query=torch.from_numpy(query), k=4)
        assert found["key"].tolist() == expected["key"].tolist()
        np.testing.assert_allclose(found["similarity"], expected["similarity"], atol=1e-5)


def test_stores_and_files_of_features_are_galleries(model, tmp_path):
    store = small_store(tmp_path / "store")
    query = store.image(5)
    found = model.search(gallery=tmp_path / "store", query=query, k=100)
    assert len(found) == len(store)
    assert found["key"][0] == store.keys[5]
    header = {"weights": checksum(model.path), "model": "ours", "images": "gone", "dataset": "folder"}
    table = FeatureTable(
        store.keys, model.embed(tmp_path / "store", unit=False), store.pids, store.camids, store.splits, header
    )
    write_features(tmp_path / "mine.parquet", table)
    again = model.search(gallery=tmp_path / "mine.parquet", query=query, k=100, split="pool")
    assert again["key"].tolist() == found["key"].tolist()
    table.header["weights"] = "another"
    write_features(tmp_path / "other.parquet", table)
    with pytest.raises(UserError, match=r"other\.parquet holds features of other weights"):
        model.search(gallery=tmp_path / "other.parquet", query=query)
    with pytest.raises(UserError, match="gallery: no image of split 'val'; it has pool"):
        model.search(gallery=tmp_path / "store", query=query, split="val")


def test_errors_name_the_place_and_the_remedy(model, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    Image.fromarray(pictures[0]).save(tmp_path / "good.png")
    with pytest.raises(UserError, match=r"image 'bad\.jpg': undecodable.*leave it out, or use rayreid predict"):
        model.embed(tmp_path)
    with pytest.raises(UserError, match="batch_size=0: give a positive number"):
        model.embed(pictures, batch_size=0)
    with pytest.raises(UserError, match="k=0: give a positive number"):
        model.search(pictures, pictures, k=0)
    with pytest.raises(UserError, match="query: features have 3 values, and those of this model 192"):
        model.search(pictures, np.zeros((2, 3), np.float32))
    with pytest.raises(UserError, match="split=gallery: only an image store or a file of features has splits"):
        model.search(pictures, pictures, split="gallery")


def test_given_features_are_real_numbers_of_any_kind(model, pictures):
    raw = model.embed(pictures)
    expected = model.search(raw, raw, k=2)
    bfloat = torch.from_numpy(raw).bfloat16()
    for given in (torch.from_numpy(raw).requires_grad_(), raw.astype(np.float64), bfloat, bfloat.requires_grad_()):
        found = model.search(given, raw, k=2)
        assert found["key"].tolist() == expected["key"].tolist()
        np.testing.assert_allclose(found["similarity"], expected["similarity"], atol=0.01)
    wide = (2, 192)
    for given, message in (
        (np.zeros(wide, np.complex64), "gallery: features are real numbers, and this array is complex64"),
        (torch.zeros(wide, dtype=torch.complex64), r"this tensor is torch\.complex64"),
        (torch.zeros(wide, dtype=torch.bool), r"this tensor is torch\.bool"),
        (np.full(wide, "1"), "this array is <U1"),
        (np.full(wide, None), "this array is object"),
        (np.full(wide, np.nan), "gallery: features hold NaN or infinity"),
    ):
        with pytest.raises(UserError, match=message):
            model.search(given, raw)
    with pytest.raises(UserError, match="split=gallery: only an image store or a file of features has splits"):
        model.search(raw, raw, split="gallery")


def test_a_model_that_does_not_exist_is_refused_as_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="nothing: no artifact there"):
        Model.load("nothing")
    (tmp_path / "other.pth").write_bytes(b"weights")
    with pytest.raises(UserError, match="convert other weights with rayreid weights convert"):
        Model.load(tmp_path / "other.pth")


def test_an_artifact_and_a_published_folder_are_models(weights, pictures, model, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path))
    artifact = Artifact(tmp_path, "finetune", 1, {})
    artifact.path.mkdir(parents=True)
    published = tmp_path / "published"
    published.mkdir()
    for folder in (artifact.path, published):
        (folder / "model.safetensors").write_bytes(weights.read_bytes())
    artifact.finish({})
    for name in (artifact.path, str(artifact), published):
        np.testing.assert_array_equal(Model.load(name, device="cpu").embed(pictures), model.embed(pictures))


def test_devices_are_named_as_in_torch():
    assert device_named("cpu") == torch.device("cpu")
    assert device_named("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name, message in (("tpu", "no such device"), ("meta", "computes on cpu and cuda"), ("cuda:99", "GPUs are")):
        with pytest.raises(UserError, match=message):
            device_named(name)
