import argparse
import sys
import types
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torch

from rayreid.errors import UserError
from rayreid.models import resnet as resnets
from rayreid.models.backbones import build_backbone
from rayreid.models.checkpoints import read_checkpoint
from rayreid.models.formats import FORMATS, TITLES
from rayreid.models.weights import load_weights
from small_resnet import SmallResNet

VIT = {"embed_dim": 24, "num_heads": 3, "depth": 2, "img_size": (64, 32)}
NORM = {"weight": torch.ones(24), "running_mean": torch.ones(24)}


def vit(seed=0, stem="patchify", **other):
    torch.manual_seed(seed)
    return randomised(build_backbone("vit_tiny", stem, **{**VIT, **other}))


def swin(seed=0):
    torch.manual_seed(seed)
    return build_backbone("swin_tiny", img_size=(64, 32), depths=(1, 1, 1, 1))


def resnet(seed=0):
    torch.manual_seed(seed)
    with patch.object(resnets, "ResNet50", SmallResNet):
        return randomised(build_backbone("resnet50"))


def randomised(backbone):
    for name, buffer in backbone.named_buffers():
        buffer.uniform_(0.5, 2.0) if buffer.is_floating_point() else buffer.fill_(len(name))
    return backbone


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def other(state):
    """Tensors of the same names and shapes, which must not be the ones that are loaded."""
    return {name: torch.full_like(value, 7) for name, value in state.items()}


def head(prefix, width=24):
    return {f"{prefix}.weight": torch.zeros(5, width), f"{prefix}.bias": torch.zeros(5)}


def assert_same(backbone, source):
    for name, value in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name


def dino(state, **settings):
    projection = under("head.mlp.0", {".weight": torch.zeros(3, 3)})
    teacher = under("module.backbone.", state) | under("module.", projection)
    content = {
        "student": other(teacher),
        "teacher": teacher,
        "epoch": 100,
        "optimizer": {"param_groups": [{"lr": 0.1}]},
    }
    return content | {"args": argparse.Namespace(arch="vit_small", **settings)}, list(projection)


def mocov3(state, top):
    heads = under(top + ".0", {".weight": torch.zeros(3, 24)})
    beside = under("momentum_encoder.", other(state)) | head("predictor.0")
    encoder = under("base_encoder.", state | heads)
    content = {"epoch": 300, "arch": "vit_base", "state_dict": under("module.", encoder | beside)}
    return content, [*under("base_encoder.", heads), *beside]


def mocov2(state):
    queue = {"queue": torch.zeros(3, 4), "queue_ptr": torch.zeros(1)}
    top = under("encoder_q.", head("fc.0") | head("fc.2"))
    beside = under("encoder_k.", other(state)) | queue
    content = under("module.", under("encoder_q.", state) | top | beside)
    return {"state_dict": content, "arch": "resnet50"}, [*top, *beside]


def authors_swin(state):
    """Names of Swin's authors: the step to the next stage ends a stage."""
    names = {f"layers.{i + 1}.downsample.": f"layers.{i}.downsample." for i in range(3)}
    for new, old in names.items():
        state = {name.replace(new, old) if name.startswith(new) else name: value for name, value in state.items()}
    table = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}
    return state | table | {"layers.1.blocks.0.attn_mask": torch.zeros(4, 49, 49)}


COMPUTED = ["layers.0.blocks.0.attn.relative_position_index", "layers.1.blocks.0.attn_mask"]


def moby(state):
    beside = under("encoder_k.", other(state)) | head("projector.linear_out") | head("projector_k.linear_out")
    beside |= head("predictor.linear_out") | {"queue1": torch.zeros(3, 4), "queue_ptr": torch.zeros(1)}
    return {"model": under("encoder.", authors_swin(state)) | beside}, [*beside, *(f"encoder.{n}" for n in COMPUTED)]


def sequence(state):
    """Cluster Contrast's ResNet is a sequence of layers."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    named = {}
    for name, value in state.items():
        layer, rest = name.split(".", 1)
        named[f"module.base.{places[layer]}.{rest}"] = value
    beside = under("feat_bn.", NORM) | {"gap.p": torch.ones(1)}
    return {"state_dict": named | under("module.", beside), "best_mAP": np.float64(0.8), "epoch": 50}, list(beside)


def fine_tuned(state):
    beside = head("base.fc") | under("bottleneck.", NORM) | {"classifier.weight": torch.zeros(10, 24)}
    return under("base.", state) | beside, list(beside)


def own_pretraining(state):
    """The state that our loop checkpoints."""
    teacher_head = under("teacher.head.mlp.0", {".weight": torch.zeros(3, 3)})
    beside = under("student.backbone.", other(state)) | teacher_head | {"loss.centre": torch.zeros(1, 3)}
    return {"step": 20, "method": under("teacher.backbone.", state) | beside, "optimizer": {}, "scaler": {}}, list(
        beside
    )


def own_contrast(state):
    """The same of a method with a momentum encoder."""
    beside = under("momentum.backbone.", other(state)) | under("base.projector.0", {".weight": torch.zeros(3, 3)})
    beside |= {"predictor.0.weight": torch.zeros(3, 3), "queue1.keys": torch.zeros(4, 3)}
    return {"step": 20, "method": under("base.backbone.", state) | beside, "optimizer": {}, "scaler": {}}, list(beside)


def own_finetuning(state):
    content, beside = fine_tuned(state)
    return {"step": 20, "method": content, "optimizer": {}, "scaler": {}}, beside


def contrasted(state):
    content = under("module.", state | under("bottleneck.", NORM) | head("fc"))
    return {"state_dict": content, "best_mAP": np.float64(0.9)}, [*under("bottleneck.", NORM), *head("fc")]


def of_timm(state):
    beside = head("head") | head("head_dist") | head("pre_logits.fc") | head("fc_norm")
    return state | beside, list(beside)


def of_timm_swin(state):
    return state | head("head.fc"), list(head("head.fc"))


def plain(state):
    return {"model": state}, []


def ics():
    return vit(stem="ics")


def square():
    return vit(img_size=(64, 64))


CASES = [
    ("rayreid-state", ics, own_pretraining),
    ("rayreid-state", resnet, own_contrast),
    ("reid", ics, own_finetuning),
    ("transreid-pretraining", ics, dino),
    ("transreid-pretraining", vit, dino),
    ("transreid-converted", ics, lambda state: (state, [])),
    ("reid", ics, fine_tuned),
    ("reid", ics, lambda state: (under("base.", state), [])),
    ("cluster-contrast", vit, contrasted),
    ("cluster-contrast", resnet, sequence),
    ("dino", square, dino),
    ("dino", square, lambda state: ({"teacher": under("backbone.", state)}, [])),
    ("dino", resnet, dino),
    ("bare", square, plain),
    ("bare", resnet, plain),
    ("timm", vit, of_timm),
    ("timm", swin, of_timm_swin),
    ("timm", resnet, lambda state: (state | head("fc", 2048), list(head("fc")))),
    ("swin", swin, lambda state: ({"model": authors_swin(state) | head("head")}, [*COMPUTED, *head("head")])),
    ("mocov3", vit, lambda state: mocov3(state, "head")),
    ("mocov3", resnet, lambda state: mocov3(state, "fc")),
    ("mocov2", resnet, mocov2),
    ("moby", swin, moby),
]


@pytest.mark.parametrize(("name", "network", "write"), CASES)
def test_files_of_every_origin_load_whole(tmp_path, name, network, write):
    source = network()
    content, ignored = write(source.state_dict())
    torch.save(content, tmp_path / "w.pth")
    target = network()
    for value in target.state_dict().values():
        value.zero_()
    report = load_weights(target, tmp_path / "w.pth")
    assert_same(target, source)
    assert report.format == name and TITLES[name] in str(report)
    assert sorted(report.ignored) == sorted(ignored)
    assert all(report.ignored.values())
    assert report.whole and not report.resized and not report.counted_anew
    assert report.loaded == list(source.state_dict())


ELSEWHERE = {
    *{
        "pass",
        "pass-reid",
        "solider",
        "solider-reid",
        "fast-reid",
        "torchreid",
        "strong-baseline",
        "lupersonnl",
        "mae",
        "dinov2",
        "dinov3",
    },
    *{"clip-reid", "osnet", "transformers"},
}
"""Formats of tests/models/test_published_families.py."""


def test_every_format_is_tried_above_or_elsewhere():
    assert {name for name, _, _ in CASES} | ELSEWHERE | {"wrapped"} == {form.name for form in FORMATS}


def test_a_model_around_a_backbone_loads_without_its_other_parts(tmp_path):
    source = vit()
    torch.save(under("backbone.", source.state_dict()) | {"my_neck.weight": torch.zeros(2)}, tmp_path / "w.pth")
    target = vit(1)
    report = load_weights(target, tmp_path / "w.pth")
    assert_same(target, source)
    assert report.format == "wrapped"
    assert report.ignored == {"my_neck.weight": "outside of backbone.*, which holds the backbone"}


def test_what_a_file_says_of_itself_is_told(tmp_path):
    content, _ = dino(vit().state_dict(), height=64, width=32)
    torch.save(content, tmp_path / "w.pth")
    checkpoint = read_checkpoint(tmp_path / "w.pth")
    assert checkpoint.facts == {"arch": "vit_small", "epoch": 100, "img_size": (64, 32)}
    # the settings tell a grid that the number of positions does not
    turned = vit(img_size=(32, 64))
    assert load_weights(turned, tmp_path / "w.pth").resized == {"pos_embed": ((4, 2), (2, 4))}


def test_settings_that_do_not_fit_the_positions_are_not_believed(tmp_path):
    content, _ = dino(vit().state_dict(), height=256, width=128)
    torch.save(content, tmp_path / "w.pth")
    assert load_weights(vit(img_size=(96, 32)), tmp_path / "w.pth").resized == {"pos_embed": ((4, 2), (6, 2))}


@pytest.mark.parametrize("strict", [True, False])
def test_the_heads_of_moco_v3_are_known_though_no_tensor_shows_them(tmp_path, strict):
    source = vit(embed_dim=384, num_heads=12)
    torch.save(mocov3(source.state_dict(), "head")[0], tmp_path / "w.pth")
    target = vit(embed_dim=384, num_heads=6)
    before = target.state_dict()["norm.weight"].clone()
    with pytest.raises(UserError, match=r"w\.pth is of a ViT with 12 attention heads.* has 6; set num_heads: 12"):
        load_weights(target, tmp_path / "w.pth", strict)
    assert torch.equal(target.norm.weight, before)
    target = vit(seed=1, embed_dim=384, num_heads=12)
    assert load_weights(target, tmp_path / "w.pth", strict).whole
    assert_same(target, source)


def test_the_last_block_of_a_model_with_local_branches_is_the_one_in_use(tmp_path):
    source, unused = vit(stem="ics"), vit(seed=1, stem="ics").state_dict()
    state = source.state_dict()
    branch = {f"b1.0.{name.removeprefix('blocks.1.')}": v for name, v in state.items() if name.startswith("blocks.1.")}
    branch |= {f"b1.1.{name.removeprefix('norm.')}": v for name, v in state.items() if name.startswith("norm.")}
    other_branch = {name.replace("b1.", "b2."): torch.zeros_like(value) for name, value in branch.items()}
    last = {name: unused[name] for name in state if name.startswith(("blocks.1.", "norm."))}
    content = under("base.", state | last) | branch | other_branch | {"classifier_4.weight": torch.zeros(3, 24)}
    torch.save(content, tmp_path / "w.pth")
    target = vit(seed=2, stem="ics")
    report = load_weights(target, tmp_path / "w.pth")
    assert_same(target, source)
    assert report.ignored["base.norm.weight"] == "not in use, b1 takes its place"
    assert set(report.ignored) == {*under("base.", last), *other_branch, "classifier_4.weight"}


def test_files_older_than_the_counters_of_batch_norm_load(tmp_path):
    source = resnet()
    state = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    target = resnet(1)
    report = load_weights(target, tmp_path / "w.pth")
    assert report.whole and report.loaded == list(state) and len(report.counted_anew) == 16
    assert all(target.state_dict()[name] == 0 for name in report.counted_anew)
    del state["bn1.running_mean"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"2 missing: bn1\.running_mean, bn1\.num_batches_tracked"):
        load_weights(target, tmp_path / "w.pth")


def test_the_settings_of_swins_authors_are_passed_over(tmp_path, monkeypatch):
    config = types.ModuleType("yacs.config")
    config.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", config)
    settings = config.CfgNode(SEED=0)
    settings.__dict__["__immutable__"] = True
    content, _ = moby(swin().state_dict())
    torch.save(content | {"config": settings}, tmp_path / "w.pth")
    target = swin(1)
    assert load_weights(target, tmp_path / "w.pth").format == "moby"
    assert_same(target, swin())


TOKEN = torch.zeros(1, 1, 24)


@pytest.mark.parametrize(
    ("added", "name", "reason"),
    [
        ({"part_token1": TOKEN}, "pass", "part tokens have no positions"),
        ({"dist_token": TOKEN}, "dino", "distillation token"),
    ],
)
def test_other_architectures_are_told_from_ours(tmp_path, added, name, reason):
    source = vit(img_size=(64, 64))
    content, _ = dino(source.state_dict() | added)
    torch.save(content, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").format == name
    target = vit(seed=1, img_size=(64, 64))
    with pytest.raises(
        UserError, match=rf"w\.pth is {TITLES[name].split('(')[0]}.*of another architecture: .*{reason}"
    ):
        load_weights(target, tmp_path / "w.pth")
    assert_same(target, vit(seed=1, img_size=(64, 64)))
    report = load_weights(target, tmp_path / "w.pth", strict=False)
    assert not report.whole and reason in report.differs
    assert report.unexpected == list(added)
    assert_same(target, source)


def test_a_norm_of_the_mean_over_patches_is_not_the_class_tokens(tmp_path):
    state = vit().state_dict()
    state = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: state[name] for name in state}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="another architecture: the mean over patches"):
        load_weights(vit(), tmp_path / "w.pth")


def test_the_class_names_of_timm_have_not_changed():
    """The cases above write names as timm's own models have them."""
    names = set(timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)).state_dict())
    assert {*swin().state_dict(), "head.fc.weight", "head.fc.bias"} == names
    names = set(timm.create_model("resnet50").state_dict())
    assert {*build_backbone("resnet50").state_dict(), "fc.weight", "fc.bias"} == names


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda state: under("backbone.", state) | head("head"), "wrapped"),
        (lambda state: {"model": other(state), "teacher": state}, "bare"),
        (lambda state: under("backbone.", state) | {"head.mlp.0.weight": TOKEN}, "transreid-pretraining"),
    ],
)
def test_a_family_of_pre_training_is_named_only_by_its_teacher_or_its_head(tmp_path, write, name):
    source, target = vit(), vit(1)
    torch.save(write(source.state_dict()), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert report.format == name and report.whole
    assert_same(target, source)
