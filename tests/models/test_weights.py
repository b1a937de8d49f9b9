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
from rayreid.models.positions import resize_positions
from rayreid.models.weights import (
    check_weights,
    load_backbone,
    load_weights,
    read_header,
    save_backbone,
)

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


def test_position_embedding_is_resized_as_published(golden):
    case = golden("pos_embed_resize.npz")
    names = list(case)  # each src_HxW is followed by its dst_HxW
    assert len(names) >= 2 and [name[:4] for name in names] == ["src_", "dst_"] * (len(names) // 2)
    for pair in zip(names[::2], names[1::2], strict=True):
        grids = [tuple(map(int, re.findall(r"\d+", name))) for name in pair]
        resized = resize_positions(torch.from_numpy(case[pair[0]]), *grids)
        np.testing.assert_allclose(resized.numpy(), case[pair[1]], rtol=0, atol=1e-6, err_msg=str(pair))


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
    assert (report.format, report.header, report.ignored, report.resized) == ("rayreid", header, {}, {})
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
    assert report.format == "bare"
    assert report.resized == {"pos_embed": ((14, 14), (16, 8))}
    assert "pos_embed resized 14x14 → 16x8" in str(report)
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


def test_what_fits_is_loaded_where_that_was_asked_for(tmp_path):
    backbone, other = vit(stem="patchify"), vit(seed=1)
    content = backbone.state_dict()
    content["blocks.0.mlp.fc3.weight"] = content.pop("blocks.0.mlp.fc1.weight")
    content["blocks.1.mlp.fc1.weight"] = torch.zeros(96, 25)
    torch.save(content, tmp_path / "w.pth")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    report = load_weights(other, tmp_path / "w.pth", strict=False)
    assert not report.whole
    stem = [name for name in before if name.startswith("patch_embed.conv.")]
    assert report.missing == [*stem, "blocks.0.mlp.fc1.weight"]
    assert report.unexpected == ["blocks.0.mlp.fc3.weight"]
    assert report.other_shape["blocks.1.mlp.fc1.weight"] == ((96, 25), (96, 24))
    assert set(report.other_shape) == {"blocks.1.mlp.fc1.weight", "patch_embed.proj.weight"}
    assert {*report.loaded, *report.missing, *report.other_shape} == set(before)
    for name, value in other.state_dict().items():
        assert torch.equal(value, content[name] if name in report.loaded else before[name]), name
    line = str(report)
    assert f"{len(report.loaded)} tensors loaded" in line and "all" not in line and "\n" not in line
    assert f"{len(stem) + 1} missing, 1 unexpected, 2 of another shape" in line
    assert "  missing: blocks.0.mlp.fc1.weight" in report.lines()
    assert "  of another shape: blocks.1.mlp.fc1.weight (file (96, 25), backbone (96, 24))" in report.lines()
    json.dumps(report.figures())


def test_a_file_of_which_nothing_fits_is_refused_in_any_case(tmp_path):
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="something else"):
        load_weights(vit(), tmp_path / "w.pth", strict=False)


def test_a_check_loads_nothing_and_needs_no_memory(tmp_path):
    save_backbone(tmp_path / "b.safetensors", vit(img_size=(96, 32)), MEAN, STD)
    with torch.device("meta"):
        backbone = vit()
    checked = check_weights(backbone, tmp_path / "b.safetensors")
    assert checked == load_weights(vit(), tmp_path / "b.safetensors")
    assert checked.resized == {"pos_embed": ((6, 2), (4, 2))}
    assert {value.device.type for value in backbone.state_dict().values()} == {"meta"}
    before = vit(seed=1)
    check_weights(before, tmp_path / "b.safetensors")
    assert_same(before, vit(seed=1))


@pytest.mark.parametrize("strict", [True, False])
def test_another_number_of_heads_is_refused_though_every_shape_fits(tmp_path, strict):
    save_backbone(tmp_path / "b.safetensors", vit(num_heads=6), MEAN, STD)
    with pytest.raises(UserError, match=r"b\.safetensors is of a ViT with 6 .* has 3; set num_heads: 6"):
        load_weights(vit(), tmp_path / "b.safetensors", strict)
    assert load_weights(vit(num_heads=6), tmp_path / "b.safetensors", strict).whole


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    content = vit().state_dict()
    content["blocks.1.mlp.fc2.weight"][0, 0] = float("nan")
    assert "not finite: blocks.1.mlp.fc2.weight (1 NaN of 2,304 values)" in refused(tmp_path, content)
    with pytest.raises(UserError, match="not finite"):
        load_weights(vit(seed=1), tmp_path / "w.pth", strict=False)
    # a head is not loaded, so its values do not matter
    content = vit().state_dict() | {"head.weight": torch.full((2, 24), float("inf"))}
    torch.save(content, tmp_path / "w.pth")
    assert load_weights(vit(seed=1), tmp_path / "w.pth").whole


def test_the_refusal_says_what_loading_without_strict_would_take(tmp_path):
    content = vit().state_dict()
    wanted = len(content)
    del content["norm.bias"]
    assert f"strict: false (of a command: --no-strict) would take {wanted - 1} of the {wanted} tensors" in refused(
        tmp_path, content
    )
    assert len(load_weights(vit(), tmp_path / "w.pth", strict=False).loaded) == wanted - 1
    assert "would not help: no tensor fits" in refused(tmp_path, {"a.weight": torch.zeros(2)})


def test_a_grid_that_has_two_readings_is_refused_unless_the_network_has_it(tmp_path):
    source = vit(stem="patchify", img_size=(384, 128))
    assert "24x8 or 16x12" in refused(tmp_path, source.state_dict(), vit(stem="patchify", img_size=(256, 128)))
    same = vit(seed=1, stem="patchify", img_size=(384, 128))
    assert load_weights(same, tmp_path / "w.pth").whole
    assert_same(same, source)


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
    told = (
        r"w\.pth was refused: loading it would use \w+\.mkdir.*save its tensors alone"
        if written != "pickle 4"
        else r"w\.pth is not"
    )
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


def test_a_file_can_be_read_by_whoever_may_read_others(tmp_path):
    (tmp_path / "any").touch()
    save_backbone(tmp_path / "b.safetensors", vit(), MEAN, STD)
    assert (tmp_path / "b.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_patches_that_are_not_square(tmp_path):
    backbone = vit(stem="patchify", patch_size=(16, 8))
    save_backbone(tmp_path / "b.safetensors", backbone, MEAN, STD)
    assert_same(load_backbone(tmp_path / "b.safetensors")[0], backbone)
