import pytest
import timm
import torch
from huggingface_hub import constants

from rayreid.errors import UserError
from rayreid.models import hub
from rayreid.models.backbones import build_backbone
from rayreid.models.checkpoints import of_timm, read_checkpoint
from rayreid.models.positions import resize_positions
from rayreid.models.weights import load_weights

TINY = "timm:vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture
def online(monkeypatch):
    """A hub that has every model, with weights that are drawn: this is not about its weights but about their way."""
    monkeypatch.setattr(hub, "_cached", lambda repository: True)
    create = timm.create_model
    made = []

    def fetch(name, pretrained):
        assert pretrained
        torch.manual_seed(0)
        made.append(create(name, pretrained=False))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", fetch)
    return made


def test_the_name_is_completed_with_the_tag_of_its_weights():
    assert hub.full_name("timm:vit_small_patch16_224") == "timm:vit_small_patch16_224.augreg_in21k_ft_in1k"
    assert hub.full_name(TINY) == TINY


@pytest.mark.parametrize("name", ["vit_smal_patch16_224", "vit_small_patch16_224.augreg_in21"])
def test_a_name_that_timm_does_not_know_is_refused_with_one_near_it(name):
    with pytest.raises(UserError, match=r"'vit_smal.*similar names: .*vit_small_patch16_224") as error:
        hub.full_name("timm:" + name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["told", "found out"])
def test_without_a_network_the_remedy_is_named(monkeypatch, tmp_path, how):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "told")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("the hub's client was asked"))
    with pytest.raises(
        UserError, match=r"timm:vit_tiny.*download .* on a machine with a network and give the file"
    ) as error:
        read_checkpoint(TINY)
    assert "timm/vit_tiny_patch16_224.augreg_in21k" in str(error.value) and "\n" not in str(error.value)


def test_a_fetch_that_fails_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("many\nlines")

    monkeypatch.setattr(hub, "_cached", lambda repository: True)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match="on a machine with a network") as error:
        hub.pretrained(TINY)
    assert "\n" not in str(error.value)


def test_a_square_vit_comes_to_the_reid_grid_with_its_mean_and_std(online):
    backbone = build_backbone("vit_tiny")
    report = load_weights(backbone, TINY)
    source = online[0].state_dict()
    assert report.resized == {"pos_embed": ((14, 14), (16, 8))}
    torch.testing.assert_close(backbone.pos_embed, resize_positions(source["pos_embed"], (14, 14), (16, 8)))
    assert all(torch.equal(v, source[name]) for name, v in backbone.state_dict().items() if name != "pos_embed")
    assert report.format == "timm" and set(report.ignored) == {"head.weight", "head.bias"}
    assert report.facts["mean"] == report.facts["std"] == [0.5, 0.5, 0.5]
    assert "  known: mean: [0.5, 0.5, 0.5]" in report.lines()


def test_at_the_own_size_the_feature_is_timms(online):
    backbone = build_backbone("vit_tiny", img_size=(224, 224)).eval()
    load_weights(backbone, TINY)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = online[0].eval().forward_features(images)[:, 0]
        torch.testing.assert_close(backbone(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("swin_tiny_patch4_window7_224.ms_in1k", "swin_tiny"), ("resnet50.a1_in1k", "resnet50")]
)
def test_other_networks_of_timm_load_whole(online, theirs, ours):
    report = load_weights(build_backbone(ours), "timm:" + theirs)
    assert report.whole and report.facts["mean"] == [0.485, 0.456, 0.406]


def test_heads_of_another_number_are_refused():
    model = timm.create_model("vit_small_patch16_224", pretrained=False, depth=1, num_heads=12)
    assert of_timm(model).facts["num_heads"] == 12
