import argparse
import json
import os
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.weights import load_backbone, load_weights, read_header, resize_positions, save_backbone

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MADE = {"embed_dim": 24, "num_heads": 3, "depth": 2, "img_size": (64, 32)}


def vit(seed=0, stem="ics", **other):
    torch.manual_seed(seed)
    backbone = build_backbone("vit_tiny", stem, **{**MADE, **other})
    for buffer in backbone.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2.0)
    return backbone


def assert_same(backbone, other):
    assert list(backbone.state_dict()) == list(other.state_dict())
    for name, value in other.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[name], value, rtol=0, atol=0)


def prefixed(prefix, backbone):
    return {prefix + name: value for name, value in backbone.state_dict().items()}


@pytest.mark.parametrize("sizes", [("src_16x8", "dst_24x8"), ("src_14x14", "dst_16x8")])
def test_position_embedding_is_resized_as_published(golden, sizes):
    case = golden("pos_embed_resize.npz")
    grids = [tuple(map(int, re.findall(r"\d+", name))) for name in sizes]
    resized = resize_positions(torch.from_numpy(case[sizes[0]]), *grids)
    np.testing.assert_allclose(resized.numpy(), case[sizes[1]], rtol=0, atol=1e-6)


def test_save_and_load_again_is_exact(tmp_path):
    backbone = vit(drop_path=0.1)
    save_backbone(tmp_path / "b.safetensors", backbone, MEAN, STD, method="dino", epochs=3)
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]
    again, header = load_backbone(tmp_path / "b.safetensors")
    assert_same(again, backbone)
    assert again.spec == backbone.spec
    assert header == read_header(tmp_path / "b.safetensors")
    assert (header["mean"], header["std"], header["method"], header["epochs"]) == (
        list(MEAN),
        list(STD),
        "dino",
        3,
    )
    other = vit(seed=1)
    report = load_weights(other, tmp_path / "b.safetensors")
    assert_same(other, backbone)
    assert (report.format, report.header, report.ignored, report.resized) == ("rayreid", header, [], [])
    assert report.loaded == list(backbone.state_dict())


def test_double_precision_survives(tmp_path):
    backbone = vit().double()
    save_backbone(tmp_path / "b.safetensors", backbone, MEAN, STD)
    other = vit(seed=1).double()
    load_weights(other, tmp_path / "b.safetensors")
    assert_same(other, backbone)


@pytest.mark.parametrize("arguments", [("swin_tiny", {"depths": (1, 1, 1, 1), "img_size": (64, 32)}), ("resnet50", {})])
def test_other_backbones_survive_a_round_trip(tmp_path, arguments):
    backbone = build_backbone(arguments[0], **arguments[1])
    save_backbone(tmp_path / "b.safetensors", backbone, MEAN, STD)
    assert_same(load_backbone(tmp_path / "b.safetensors")[0], backbone)


def test_overrides_change_size_and_drop_path(tmp_path):
    backbone = vit()
    save_backbone(tmp_path / "b.safetensors", backbone, MEAN, STD)
    larger, header = load_backbone(tmp_path / "b.safetensors", img_size=(96, 32), drop_path=0.3)
    assert header["backbone"] == backbone.spec
    assert (larger.spec["img_size"], larger.spec["drop_path"]) == ([96, 32], 0.3)
    torch.testing.assert_close(larger.pos_embed, resize_positions(backbone.pos_embed, (4, 2), (6, 2)))
    # as many positions on another grid: the header tells
    turned, _ = load_backbone(tmp_path / "b.safetensors", img_size=(32, 64))
    torch.testing.assert_close(turned.pos_embed, resize_positions(backbone.pos_embed, (4, 2), (2, 4)))


def published(kind, backbone):
    """A file's content as the published code writes it, and what the report is to say of it."""
    head = {"head.mlp.0.weight": torch.zeros(3, 3), "head.last_layer.weight_g": torch.ones(3, 1)}
    neck = {"bottleneck.weight": torch.ones(24), "bottleneck.running_mean": torch.ones(24)}
    classes = {"classifier.weight": torch.zeros(10, 24)}
    if kind == "pretraining":
        student = {"module." + name: value for name, value in (prefixed("backbone.", vit(seed=9)) | head).items()}
        teacher = {"module." + name: value for name, value in (prefixed("backbone.", backbone) | head).items()}
        content = {
            "student": student,
            "teacher": teacher,
            "epoch": 3,
            "args": argparse.Namespace(arch="vit_small"),
        }
        content["optimizer"] = {"state": {}, "param_groups": [{"lr": 0.1}]}
        return content, "pretraining", list(head)
    if kind == "pretraining without DDP":
        return {"teacher": prefixed("backbone.", backbone) | head}, "pretraining", list(head)
    if kind == "own pretraining":
        networks = prefixed("student.backbone.", vit(seed=9)) | prefixed("teacher.backbone.", backbone)
        heads = {f"{side}.{name}": value for side in ("student", "teacher") for name, value in head.items()}
        method = networks | heads | {"loss.centre": torch.zeros(1, 3)}
        return {"step": 20, "method": method, "optimizer": {}, "scaler": {}}, "pretraining", list(head)
    if kind == "own fine-tuning":
        return {"step": 20, "method": prefixed("base.", backbone) | neck | classes}, "reid", [*neck, *classes]
    if kind == "converted":
        return prefixed("base.", backbone), "reid", []
    if kind == "fine-tuned":
        fc = {"base.fc.weight": torch.zeros(10, 24)}
        return prefixed("base.", backbone) | fc | neck | classes, "reid", [*neck, *classes, "fc.weight"]
    if kind == "cluster contrast":
        state = {"module." + name: value for name, value in (prefixed("base.", backbone) | neck).items()}
        return {"state_dict": state, "epoch": 50, "best_mAP": np.float64(0.9)}, "reid", list(neck)
    if kind == "timm":
        top = {"head.weight": torch.zeros(7, 24), "head.bias": torch.zeros(7)}
        return backbone.state_dict() | top, "plain", list(top)
    return {"model": backbone.state_dict()}, "plain", []


KINDS = [
    "pretraining",
    "pretraining without DDP",
    "own pretraining",
    "own fine-tuning",
    "converted",
    "fine-tuned",
    "cluster contrast",
    "timm",
    "model",
]


@pytest.mark.parametrize("stem", ["ics", "patchify"])
@pytest.mark.parametrize("kind", KINDS)
def test_published_files_load(tmp_path, kind, stem):
    backbone, other = vit(stem=stem), vit(seed=1, stem=stem)
    content, origin, ignored = published(kind, backbone)
    if kind == "pretraining" and stem == "patchify":
        content["student"] = {}
    torch.save(content, tmp_path / "w.pth")
    report = load_weights(other, tmp_path / "w.pth")
    assert_same(other, backbone)
    assert report.format == origin
    assert sorted(report.ignored) == sorted(ignored)
    assert (report.missing, report.unexpected, report.resized) == ([], [], [])


@pytest.mark.parametrize("new_format", [True, False])
def test_square_imagenet_weights_are_brought_to_the_reid_grid(tmp_path, new_format):
    source = vit(stem="patchify", img_size=(224, 224))
    state = source.state_dict()
    if new_format:
        save_file(state, tmp_path / "w")
    else:
        torch.save(state, tmp_path / "w", _use_new_zipfile_serialization=False)
    target = vit(seed=1, stem="patchify", img_size=(256, 128))
    report = load_weights(target, tmp_path / "w")
    assert (report.resized, report.format) == (["pos_embed"], "plain")
    torch.testing.assert_close(target.pos_embed, resize_positions(source.pos_embed, (14, 14), (16, 8)))


def refused(tmp_path, content, backbone=None):
    torch.save(content, tmp_path / "w.pth")
    backbone = backbone or vit(seed=1)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(backbone, tmp_path / "w.pth")
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), "a refused file changed the backbone"
    assert str(tmp_path / "w.pth") in str(error.value)
    return str(error.value)


def test_a_renamed_key_is_named(tmp_path):
    content = prefixed("base.", vit())
    content["base.blocks.1.mlp.fc3.weight"] = content.pop("base.blocks.1.mlp.fc1.weight")
    message = refused(tmp_path, content)
    assert "1 missing: blocks.1.mlp.fc1.weight" in message
    assert "1 unexpected: blocks.1.mlp.fc3.weight" in message


def test_a_changed_shape_is_named(tmp_path):
    content = vit().state_dict()
    content["blocks.1.mlp.fc1.weight"] = torch.zeros(96, 25)
    assert "blocks.1.mlp.fc1.weight (file (96, 25), backbone (96, 24))" in refused(tmp_path, content)


def test_other_networks_are_told_apart(tmp_path):
    message = refused(tmp_path, vit(stem="patchify", depth=3).state_dict())
    assert "seems to hold a ViT with patchify stem, width 24, 3 blocks, 8 positions" in message
    assert "backbone vit_tiny (a ViT with ics stem, width 24, 2 blocks" in message
    listed = re.search(r"missing: (.*?); ", message).group(1).split(", ")
    assert len(listed) == 6 and listed[-1] == "…"  # five names, then the dots
    swin = build_backbone("swin_tiny", img_size=(64, 32), depths=(1, 1, 1, 1))
    assert "seems to hold a Swin transformer" in refused(tmp_path, swin.state_dict())
    assert "seems to hold something else (a.weight" in refused(tmp_path, {"a.weight": torch.zeros(2)})


def test_a_grid_that_cannot_be_told_is_refused(tmp_path):
    content = vit().state_dict()
    content["pos_embed"] = torch.zeros(1, 1 + 11, 24)
    assert "11 positions" in refused(tmp_path, content)


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("written", ["torch", "pickle 2", "pickle 4"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, written):
    path, folder = tmp_path / "w.pth", tmp_path / "was-here"
    content = {"state_dict": vit().state_dict(), "extra": Malicious(folder)}
    if written == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Malicious(folder)}, protocol=int(written[-1])))
    # PyTorch's reader stops at the frames of protocol 4, before it sees the call
    told = r"w\.pth was refused: loading it would use \w+\.mkdir" if written != "pickle 4" else r"w\.pth is not"
    with pytest.raises(UserError, match=told) as error:
        load_weights(vit(), path)
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        load_weights(vit(), tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        read_header(tmp_path / "none.pth")
    for content in (b"", b"this is a text about weights", b"PK\x03\x04 no archive", b"\x80\x04 no pickle"):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(UserError, match=r"w\.pth is not") as error:
            load_weights(vit(), tmp_path / "w.pth")
        assert "\n" not in str(error.value)
    assert "holds no weights: its entries are epoch" in refused(tmp_path, {"epoch": 3})
    assert "holds a list" in refused(tmp_path, [1, 2])


def test_a_truncated_file_is_refused(tmp_path):
    for name, save in (("w.safetensors", lambda p: save_backbone(p, vit(), MEAN, STD)), ("w.pth", None)):
        path = tmp_path / name
        if save:
            save(path)
        else:
            torch.save(vit().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match=name):
            load_weights(vit(), path)


def test_only_our_files_have_a_header(tmp_path):
    torch.save(vit().state_dict(), tmp_path / "w.pth")
    save_file(vit().state_dict(), tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(UserError, match=f"{name}.*not written by rayreid"):
            read_header(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}.*not written by rayreid"):
            load_backbone(tmp_path / name)
    header = {"format": "rayreid-backbone/99", "backbone": {}, "mean": [], "std": []}
    save_file(vit().state_dict(), tmp_path / "new", metadata={"rayreid": json.dumps(header)})
    with pytest.raises(UserError, match="rayreid-backbone/99"):
        read_header(tmp_path / "new")
