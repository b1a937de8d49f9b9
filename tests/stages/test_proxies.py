"""The proxies of a score: which are planned, and those that the user brings."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from rayreid.config import Backbone, Proxy, Resources, ScoreTarget
from rayreid.config.loading import load_experiment
from rayreid.console import Screen
from rayreid.data.batch import ImageBatch
from rayreid.errors import UserError
from rayreid.execution.production import StageContext
from rayreid.models.backbones import build_backbone
from rayreid.models.embedding import Embedder
from rayreid.models.weights import read_header, save_backbone, weights_of
from rayreid.pipeline.graph import plan
from rayreid.pipeline.preflight import check
from rayreid.stages import proxies
from rayreid.storage.artifacts import Artifact
from recorded_run import RecordedRun
from tiny_experiment import TINY

SMALL = Backbone(name="vit_tiny", depth=1, img_size=(32, 16))
CPU = torch.device("cpu")


def network(seed: int = 0, depth: int = 1):
    torch.manual_seed(seed)
    return build_backbone("vit_tiny", "patchify", (32, 16), depth)


@pytest.fixture
def adopted(tmp_path):
    """Take a checkpoint over as the source proxy; gives the artifact."""

    def adopted(**checkpoint) -> Artifact:
        pool = Artifact(tmp_path, "ingest", 1, {})
        artifact = proxies.plan_source(pool, Proxy(backbone=SMALL, source=checkpoint), Resources())
        artifact.path.mkdir(parents=True, exist_ok=True)
        artifact.finish(
            artifact.job(StageContext(artifact, artifact.path, RecordedRun(), Screen(Console(file=io.StringIO()))))
        )
        return artifact

    return adopted


def test_a_checkpoint_of_ones_own_sees_images_its_own_way(tmp_path, adopted):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    save_backbone(tmp_path / "mine.safetensors", network(), mean, std)
    path = weights_of(adopted(weights=str(tmp_path / "mine.safetensors")).path)
    assert (read_header(path)["mean"], read_header(path)["std"]) == (list(mean), list(std))
    image = np.asarray(Image.effect_noise((16, 32), 80).convert("RGB"))
    pixels = (torch.tensor(image).permute(2, 0, 1)[None] / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(
        std
    ).view(3, 1, 1)
    with torch.inference_mode():
        expected = network().eval()(pixels)
    features = Embedder(path, CPU, "fp32")(ImageBatch.collate([image]))
    np.testing.assert_allclose(features, expected, atol=1e-4)


@pytest.mark.parametrize(("prefix", "mean"), [("", 0.485), ("base.", 0.5)])
def test_a_file_that_does_not_say_is_normalised_as_is_its_kinds_custom(tmp_path, adopted, prefix, mean):
    state = {f"{prefix}{name}": value for name, value in network().state_dict().items()}
    torch.save(state, tmp_path / "theirs.pth")
    assert adopted(weights=str(tmp_path / "theirs.pth")).facts["mean"][0] == mean
    said = adopted(weights=str(tmp_path / "theirs.pth"), mean=(0.25, 0.25, 0.25))
    assert (said.facts["mean"], said.facts["std"][0]) == ([0.25] * 3, 0.229 if not prefix else 0.5)


def test_the_content_of_a_checkpoint_is_its_identity_and_not_its_path(tmp_path):
    pool = Artifact(tmp_path, "ingest", 1, {})
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        save_backbone(tmp_path / f"{name}.safetensors", network(seed), (0.5,) * 3, (0.5,) * 3)

    def id_of(name):
        config = Proxy(backbone=SMALL, source=str(tmp_path / f"{name}.safetensors"))
        return proxies.plan_source(pool, config, Resources()).id

    assert id_of("a") == id_of("b") != id_of("c")


# What an experiment file makes of it


@pytest.fixture
def graph(tmp_path, monkeypatch):
    """The artifacts of the tiny experiment with some changes, by role; checked."""
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))

    def graph(**changes):
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **changes}))
        experiment = load_experiment(tmp_path / "tiny.yaml")
        made = plan(experiment, tmp_path / "outputs")
        check([experiment], {"tiny": made})
        return made

    return graph


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "mine.safetensors"
    save_backbone(path, build_backbone("vit_tiny", "patchify", (64, 32), 1), (0.5,) * 3, (0.5,) * 3)
    return path


SECOND = {"dataset": "synthetic", "options": {**TINY["target"]["options"], "seed": 9}}


def test_each_target_has_its_proxy_and_all_start_from_one_source(graph, weights):
    score = {"targets": [{**SECOND, "name": "b"}, {"name": "mine", "proxy": str(weights)}, TINY["target"]]}
    made = graph(score=score)
    names = ["b", "mine", "synthetic"]
    assert [role for role in made if role.startswith("target_proxy")] == [f"target_proxy.{name}" for name in names]
    assert [made[f"target_proxy.{name}"].stage for name in names] == ["finetune", "proxy", "finetune"]
    assert made["target_proxy.b"].inputs["weights"].id == made["source_proxy"].id
    assert made["target_proxy.b"].inputs["target"].id == made["target.b"].id != made["target"].id
    assert made["target.synthetic"].id == made["target"].id
    assert set(made["scores"].inputs) == {"pool", "source", "target.b", "target.mine", "target.synthetic"}
    assert list(made)[:2] == ["pool", "target"] and list(made)[-1] == "metrics"


def test_given_proxies_take_the_place_of_trained_ones(graph, weights):
    made = graph(proxy={"source": str(weights)})
    assert made["source_proxy"].stage == "proxy"
    assert made["target_proxy"].inputs["weights"].id == made["source_proxy"].id
    assert graph(proxy={"target": str(weights)})["target_proxy"].stage == "proxy"
    assert graph(proxy={"source": str(weights), "pretrain": {"batch_size": 10_000}})  # which is not used


def test_without_either_the_graph_is_what_it_was(graph):
    made = graph()
    assert set(made["scores"].inputs) == {"pool", "source", "target"}
    assert made["source_proxy"].stage == "pretrain" and made["target_proxy"].stage == "finetune"


def test_what_cannot_be_scored_with_is_refused_ahead_of_everything(graph, weights, tmp_path):
    deep = tmp_path / "deep.safetensors"
    save_backbone(deep, build_backbone("vit_tiny", "patchify", (64, 32), 2), (0.5,) * 3, (0.5,) * 3)
    for changes, message in [
        ({"proxy": {"source": str(deep)}}, "does not fit backbone vit_tiny"),
        ({"proxy": {"source": "nowhere.pth"}}, "no such weights file"),
        ({"proxy": {"source": str(weights), "target": str(weights)}}, r"proxy\.source.*are the same file"),
        ({"proxy": {"target": str(weights)}, "score": {"targets": [SECOND]}}, "leave one out"),
        ({"proxy": {"pretrain": "none"}}, r"proxy\.source"),
        ({"score": {"targets": [SECOND, TINY["target"]]}}, "are called synthetic; give one a name"),
        ({"score": {"targets": [{**SECOND, "rot": "x"}]}}, "unknown key 'score.targets.0.rot'; did you mean 'root'"),
        ({"score": {"targets": [{"name": "b"}]}}, "a dataset or a proxy, and not both"),
        (
            {"score": {"targets": [{**SECOND, "name": "b"}]}, "proxy": {"finetune": {"identities": 50}}},
            "score target b",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            graph(**changes)


def test_a_target_given_by_its_proxy_needs_a_name():
    with pytest.raises(ValueError, match="needs a name"):
        ScoreTarget(proxy="x.pth")


# What a strategy needs


@pytest.mark.parametrize("strategy", ["cluster", "target_similarity"])
def test_strategies_in_source_space_need_no_target_proxy(graph, strategy):
    made = graph(select={"strategy": strategy})
    assert "target_proxy" not in made and "scores" not in made
    assert made["priority"].inputs["features"].id == made["features"].id
    assert ("target_features" in made) == (strategy == "target_similarity")
    assert made["subset"].inputs["priority"].id == made["priority"].id
    assert made["features"].id == graph(select={"strategy": "cluster", "fraction": 0.9})["features"].id


def test_likeness_is_to_the_images_of_all_targets(graph):
    made = graph(select={"strategy": "target_similarity"}, score={"targets": [{**SECOND, "name": "b"}, TINY["target"]]})
    assert {"target_features.b", "target_features.synthetic"} <= set(made["priority"].inputs)


def test_images_without_labels_can_be_compared_with_but_not_fine_tuned_on(graph, tmp_path):
    folder = tmp_path / "cameras"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((16, 32), 80).save(folder / f"{number}.png")
    score = {"targets": [{"dataset": "folder", "root": str(folder), "name": "cameras"}]}
    made = graph(select={"strategy": "target_similarity"}, score=score)
    assert made["target_features.cameras"].inputs["images"].id == made["target.cameras"].id
    with pytest.raises(
        UserError, match="score target cameras has no labelled image of split 'train' to fine-tune on; n"
    ):
        graph(score=score)
    (tmp_path / "seen.csv").write_text(f"path,split,pid,camid\n{folder / '0.png'},query,1,1\n")
    score = {"targets": [{"dataset": "table", "root": str(tmp_path / "seen.csv"), "name": "seen"}]}
    with pytest.raises(UserError, match="score target seen: dataset table has neither training images nor images w"):
        graph(select={"strategy": "target_similarity"}, score=score)


def test_random_and_lists_need_none_of_it(graph):
    made = graph(select={"strategy": "random"})
    assert set(made["subset"].inputs) == {"pool"} and "source_proxy" not in made
