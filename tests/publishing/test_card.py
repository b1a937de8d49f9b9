import io
import shutil

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

from model_history import complete, evaluated, history, ingested, save
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.evaluation.comparison import interval_of_mean
from rayreid.inference.named_inputs import find_artifact
from rayreid.publishing.measurements import measurements_of
from rayreid.publishing.origin import Lineage, without_places
from rayreid.publishing.publish import publish
from rayreid.storage.artifacts import Artifact


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def card_of(model, tmp_path) -> tuple[dict, str]:
    folder = publish(str(model), str(tmp_path / "my-model"), "cc-by-nc-4.0", onnx=False)
    _, front, card = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), card


def flat(capsys) -> str:
    """Return what was printed as one line, whatever the width of the terminal."""
    return " ".join(capsys.readouterr().out.split())


def test_model_hubs_read_the_front_matter(root, tmp_path):
    front, _ = card_of(history(root)[1].path, tmp_path)
    known = ModelCardData(**front)
    assert (known.license, known.library_name, known.pipeline_tag) == (
        *("cc-by-nc-4.0", "timm", "image-feature-extraction"),
    )
    assert known.datasets == ["market1501", "mine"]
    assert {"person-re-identification", "vit_tiny", "stem-patchify", "dino", "supervised"} <= set(known.tags)
    name, results = model_index_to_eval_results(front["model-index"])
    assert name == "my-model"
    found = {one.metric_type: one.metric_value for one in results}
    assert found == {"mAP": 0.5, "rank1": 0.5, "rank5": 0.75, "rank10": 1.0, "mINP": 0.125}
    assert {(one.dataset_type, one.dataset_name, one.task_type) for one in results} == {
        ("market1501", "market1501 V1", "image-feature-extraction")
    }


def test_the_card_tells_data_recipe_budget_and_results(root, tmp_path):
    models = history(root)
    fingerprints = [one.fingerprint for one in Lineage(find_artifact(str(models[0].path))).datasets()]
    _, card = card_of(models[0].path, tmp_path)
    assert f"| market1501 V1 | fine-tuning with labels | 12 | `{fingerprints[0]}` |" in card
    assert f"| mine V1 | pre-training | 12 | `{fingerprints[1]}` |" in card
    assert "1. **pretrain**, seed 0, from fresh weights. Budget: images 12, steps 9, workers 1" in card
    assert "GPU-hours 0.5. Code: commit `c0ffee`." in card
    assert "2. **finetune**, seed 0, from the weights of the training before it." in card
    assert "select:\n  strategy: list\n  file: …/list.txt\n  fraction: 0.5" in card
    assert "| | these weights | mean ± std over seeds 0, 1 |" in card
    assert "| mAP | 25.0 | 37.5 ± 17.7 |" in card
    assert "95 % interval of the mean mAP:" in card
    assert "Intended use and limits" in card
    assert "of these test images were" not in card


def test_one_seed_is_said_to_be_one(root, tmp_path):
    _, card = card_of(history(root, mAPs=(0.25,))[0].path, tmp_path)
    assert "| | these weights |\n|---|---|\n| mAP | 25.0 |\n" in card
    assert "One seed: how much another training would differ is not known." in card
    assert "±" not in card


def test_weights_alone_say_that_nothing_is_recorded(root, tmp_path):
    front, card = card_of(save(tmp_path / "a.safetensors"), tmp_path)
    assert "model-index" not in front and "datasets" not in front
    assert "do not record from which data they were made" in card
    assert "do not record how they were trained" in card
    assert "made without an evaluation" in card


def test_seeds_of_the_same_row_are_measured_together(root):
    first, second = history(root)
    target = first.inputs["target"]
    evaluated(root, target, first, 0.9, feature="after")  # of another feature than the published one
    lineage = Lineage(find_artifact(str(first.path)))
    [found] = measurements_of(lineage)
    assert found.own["mAP"] == 0.25
    assert {seed: scores["mAP"] for seed, scores in found.by_seed.items()} == {0: 0.25, 1: 0.5}
    assert (found.mean("mAP"), found.std("mAP")) == (0.375, pytest.approx(0.25 / np.sqrt(2)))
    precision = np.array([[mAP + d for d in (-0.1, 0.1, -0.05, 0.05)] for mAP in (0.25, 0.5)])
    assert (found.low, found.high) == interval_of_mean(precision)
    (second.path / "artifact.json").write_text("{}")  # damaged: the other seed cannot be told any more
    [alone] = measurements_of(Lineage(find_artifact(str(first.path))))
    assert list(alone.by_seed) == [0]


def test_datasets_of_proxies_and_adaptations_are_told_apart(root):
    model = history(root, mAPs=(0.25,))[0]
    target, pretrain = model.inputs["target"], model.inputs["weights"]
    pool, source = pretrain.inputs["pool"], ingested(root, "msmt17")
    proxy = complete(Artifact(root, "finetune", 2, {"finetune": {}, "seed": 9}, {"target": source}), {})
    scores = complete(Artifact(root, "score", 1, {}, {"pool": pool, "target": proxy}), {})
    subset = complete(Artifact(root, "select", 1, {"select": {}}, {"pool": pool, "scores": scores}), {})
    weights = complete(Artifact(root, "pretrain", 1, {"pretrain": {}}, {"pool": pool, "subset": subset}), {})
    adapted = complete(Artifact(root, "adapt", 2, {"adapt": {}}, {"target": target, "weights": weights}), {})
    lineage = Lineage(find_artifact(str(adapted.path)))
    assert {one.name: one.uses for one in lineage.datasets()} == {
        "market1501 V1": ("adaptation without labels",),
        "mine V1": ("pre-training",),
        "msmt17 V1": ("choice of the images of the pre-training",),
    }
    assert [one.stage for one in lineage.trainings()] == ["pretrain", "adapt"]
    assert lineage.pools() == [pool.path]


def test_a_missing_pool_is_told_and_its_overlap_not_denied(root, tmp_path, capsys):
    model = history(root)[0]
    pool = model.inputs["weights"].inputs["pool"]
    shutil.rmtree(pool.path)
    _, card = card_of(model.path, tmp_path)
    assert f"| not known: artifact {pool.id} is missing or damaged | pre-training | not known | not known |" in card
    assert "This table is not complete" in card
    assert "Whether the images of the pre-training include test images was not checked" in card
    assert f"warning: missing or damaged under the output root: {pool.id} (pre-training)" in flat(capsys)


def test_a_missing_pre_training_is_told_and_one_seed_is_not_claimed(root, tmp_path, capsys):
    model = history(root)[0]
    pretrain = model.inputs["weights"]
    shutil.rmtree(pretrain.path.parent)
    _, card = card_of(model.path, tmp_path)
    assert f"| not known: artifact {pretrain.id} is missing or damaged | the training before |" in card
    assert f"from the weights of artifact {pretrain.id}, which is missing or damaged" in card
    assert "Whether other seeds were evaluated is not known." in card and "One seed:" not in card
    assert "was not checked" in card
    assert f"{pretrain.id} (the training before)" in flat(capsys)


def test_a_missing_choice_of_images_stays_in_the_recipe(root, tmp_path):
    model = history(root)[0]
    subset = model.inputs["weights"].inputs["subset"]
    shutil.rmtree(subset.path)
    _, card = card_of(model.path, tmp_path)
    assert f"select: 'not known: artifact {subset.id} is missing or damaged'" in card
    assert f"| not known: artifact {subset.id} is missing or damaged | choice of the images" in card


def test_a_model_without_any_store_has_rows_and_no_index(root, tmp_path):
    model = history(root)[0]
    shutil.rmtree(root / "ingest")
    front, card = card_of(model.path, tmp_path)
    target = model.inputs["target"].id
    assert f"| not known: artifact {target} is missing or damaged | fine-tuning with labels |" in card
    assert f"On a dataset that is not known any more (artifact {target} is missing or damaged), 4 queries" in card
    assert "do not record from which data" not in card and "``" not in card.replace("```", "")
    assert "model-index" not in front


def test_a_missing_history_of_another_seed_is_told(root, tmp_path):
    first, second = history(root)
    shutil.rmtree(second.inputs["weights"].path)
    _, card = card_of(first.path, tmp_path)
    assert "This table is not complete" not in card
    assert "Whether other seeds were evaluated is not known." in card


def test_a_model_of_vehicles_has_a_card_about_vehicles(root, tmp_path):
    target = ingested(root, "veri776")
    fields = {"finetune": {"epochs": 2}, "seed": 0, "start": None}
    model = Artifact(root, "finetune", 2, fields, {"target": target})
    model.path.mkdir(parents=True)
    save(model.path / "model.safetensors")
    complete(model, {})
    evaluated(root, target, model, 0.5)
    front, card = card_of(model.path, tmp_path)
    assert "vehicle-re-identification" in front["tags"] and "person-re-identification" not in front["tags"]
    assert front["model-index"][0]["results"][0]["task"]["name"] == "Vehicle re-identification"
    assert "Budget: not recorded.\n" in card  # nor a commit: an installed package has none
    assert "one vehicle" in card and "images of persons" not in card and "cloth" not in card and "skin" not in card


def target_with(root, query: int, match: int, distractor: int) -> Artifact:
    """Return a target with one query, its match and an image of nobody, by these cameras."""
    source = {"dataset": "market1501", "root": "m", "options": {"cameras": [query, match, distractor]}}
    store = Artifact(root, "ingest", 3, {"source": source})
    images = [("q", 1, query, "query"), ("g", 1, match, "gallery"), ("d", -1, distractor, "gallery")]
    records = [Record(f"{key}.png", pid, camid, split, "") for key, pid, camid, split in images]
    png = io.BytesIO()
    Image.new("RGB", (4, 8)).save(png, "PNG")
    write_shard(store.path, 0, records, lambda record: png.getvalue())
    finish_store(store.path, 1, "market1501", "V1")
    return complete(store, {"dataset": "market1501 V1", "images": 3, "fingerprint": ImageStore(store.path).fingerprint})


@pytest.mark.parametrize(
    ("camids", "kind", "name", "protocol"),
    [
        ((1, 2, -1), "market1501", "market1501 V1", "gallery images, by the Market-1501 protocol, in per cent"),
        ((-1, -1, -1), "market1501-without-cameras", "market1501 V1, without cameras", "images, without cameras, in"),
        ((1, -1, -1), "market1501-some-cameras-unknown", "market1501 V1, some cameras unknown", "where cameras are"),
    ],
    ids=["known", "unknown", "partly"],
)
def test_another_protocol_has_another_name(root, tmp_path, camids, kind, name, protocol):
    model = history(root, mAPs=(0.25,))[0]
    for path in (root / "evaluate").iterdir():
        shutil.rmtree(path)
    evaluated(root, target_with(root, *camids), model, 0.25)
    front, card = card_of(model.path, tmp_path)
    [result] = front["model-index"][0]["results"]
    assert result["dataset"] == {"type": kind, "name": name}
    assert protocol in card and f"On {name} (fingerprint" in card
    assert ("do not compare" in card) == (camids != (1, 2, -1))


def test_test_images_in_the_pool_are_told(root, tmp_path, monkeypatch):
    from rayreid.publishing import measurements

    monkeypatch.setattr(measurements, "count_test_images", lambda pool, target: 3)
    _, card = card_of(history(root)[0].path, tmp_path)
    assert "**3 of these test images were among the images of the pre-training" in card


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/pool", "…/pool"),
        ("~/pool/", "…/pool"),
        (r"C:\data\pool", "…/pool"),
        ("s3://bucket/pool", "…/pool"),
        ("https://me:secret@host/pool", "…/pool"),
        ("data/pool", "data/pool"),
        ("timm:vit_small", "timm:vit_small"),
        ({"a": ["/x/y", 1, None]}, {"a": ["…/y", 1, None]}),
    ],
    ids=str,
)
def test_places_are_cut_down_to_their_last_name(value, shown):
    assert without_places(value) == shown
