import dataclasses
from io import StringIO

import pytest
import timm
import torch
from rich.console import Console

from rayreid.config import Backbone
from rayreid.console import Screen
from rayreid.errors import UserError
from rayreid.execution.production import StageContext
from rayreid.models import hub
from rayreid.models.backbones import build_backbone
from rayreid.models.weights import save_backbone
from rayreid.stages.training import initial_weights
from rayreid.storage.artifacts import Artifact

HALF = (0.5, 0.5, 0.5)
SMALL = Backbone(name="vit_tiny", depth=1, img_size=(64, 32))
NAME = "timm:vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture
def spoken():
    return StringIO()


@pytest.fixture
def work(tmp_path, spoken):
    return StageContext(Artifact(tmp_path, "pretrain", 1, {}), tmp_path, None, Screen(Console(file=spoken, width=1000)))


@pytest.fixture
def weights(tmp_path):
    def write(name="w[1].safetensors", seed=0, **changes):
        torch.manual_seed(seed)
        config = SMALL.model_copy(update=changes)
        save_backbone(tmp_path / name, initial_weights.network(config), HALF, HALF)
        return str(tmp_path / name)

    return write


def starting(weights, **changes):
    return SMALL.model_copy(update={"weights": weights, **changes})


def test_the_network_is_the_configured_one():
    config = SMALL.model_copy(update={"num_heads": 6})
    assert initial_weights.network(config, drop_path=0.1).spec == {
        "name": "vit_tiny",
        "stem": "patchify",
        "img_size": [64, 32],
        "depth": 1,
        "drop_path": 0.1,
        "num_heads": 6,
    }
    assert "num_heads" not in initial_weights.network(SMALL).spec
    assert initial_weights.network(Backbone(name="resnet50", last_stride=1)).spec["last_stride"] == 1
    solider = initial_weights.network(Backbone(name="swin_tiny_solider", semantic_weight=0))
    assert solider.semantic_weight == 0
    with pytest.raises(UserError, match="unknown option of backbone vit_small 'semantic_weight'"):
        initial_weights.check(Backbone(semantic_weight=0.5))
    for name in ("swin_tiny", "resnet50"):
        with pytest.raises(UserError, match=rf"num_heads is for vit_\* only, not {name}"):
            initial_weights.check(Backbone(name=name, num_heads=6))


def test_weights_are_identified_by_content_name_and_strictness(weights):
    first, same, second = weights("a"), weights("b"), weights("c", seed=1)
    found = initial_weights.identifier(starting(first))
    assert found == initial_weights.identifier(starting(same)) != initial_weights.identifier(starting(second))
    kinds = [starting(first), starting(first, strict=False), starting(NAME), starting(NAME, strict=False)]
    kinds.append(starting("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"))
    assert len({initial_weights.identifier(kind) for kind in kinds}) == len(kinds)
    # without a tag timm takes this one
    assert initial_weights.identifier(starting("timm:vit_tiny_patch16_224")) == initial_weights.identifier(kinds[-1])
    assert (
        initial_weights.identifier(SMALL) is None
        and initial_weights.identifier(SMALL.model_copy(update={"strict": False})) is None
    )


def test_what_will_be_loaded_is_said_and_kept(work, spoken, weights):
    path = weights(img_size=(96, 32))
    begun, facts = initial_weights.prepare(work, starting(path))
    assert f"starts from {path} (weights of rayreid): all " in spoken.getvalue()
    assert "pos_embed resized 6x2 → 4x2" in spoken.getvalue() and spoken.getvalue().count("\n") == 1
    assert facts["start"]["resized"] == {"pos_embed": "6x2 → 4x2"} and facts["start"]["format"] == "rayreid"
    backbone = initial_weights.network(SMALL)
    begun.load(backbone)
    assert backbone.norm.weight.device.type == "cpu"
    assert initial_weights.prepare(work, SMALL) == (None, {})


def test_weights_of_another_architecture_end_the_stage_at_once(work, weights):
    deeper = starting(weights(depth=2))
    with pytest.raises(UserError, match=r"does not fit backbone vit_tiny .*unexpected: blocks\.1"):
        initial_weights.prepare(work, deeper)
    begun, facts = initial_weights.prepare(work, deeper.model_copy(update={"strict": False}))
    assert "blocks.1.norm1.weight" in facts["start"]["unexpected"]
    begun.load(initial_weights.network(SMALL))


def test_weights_of_an_earlier_stage_must_fit_whole(work, weights, tmp_path):
    given = tmp_path / "w[1].safetensors"
    weights(depth=2)
    with pytest.raises(UserError, match="does not fit"):
        initial_weights.prepare(work, starting("other.pth", strict=False), given)
    weights()
    begun, _ = initial_weights.prepare(work, starting("other.pth", strict=False), given)
    assert begun == initial_weights.Start(given, strict=True)


def test_workers_get_a_model_of_timm_as_a_file(work, monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    monkeypatch.setattr(hub, "pretrained", lambda name: model)
    begun, facts = initial_weights.prepare(work, Backbone(name="vit_tiny", weights=NAME))
    assert facts["start"]["source"] == NAME and facts["start"]["facts"]["mean"] == [0.5, 0.5, 0.5]
    monkeypatch.setattr(hub, "pretrained", lambda name: pytest.fail("a worker asked the hub"))
    assert begun.path.is_relative_to(tmp_path) and dataclasses.asdict(begun)["strict"]
    backbone = build_backbone("vit_tiny")
    begun.load(backbone)
    assert torch.equal(backbone.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)
    assert backbone.pos_embed.shape == (1, 129, 192)
