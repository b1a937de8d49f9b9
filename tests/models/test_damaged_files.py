"""Damaged and unusual weights files: each is loaded or refused in one line that names the file, never a traceback."""

import io
import json
import random

import pytest
import torch
from safetensors.torch import save

from fuzzing import fuzzed
from rayreid.errors import UserError
from rayreid.models.architecture import read_off
from rayreid.models.backbones import build_backbone
from rayreid.models.checkpoints import read_checkpoint
from rayreid.models.finiteness import not_finite
from rayreid.models.weights import check_weights, load_weights, read_header

FC1 = "blocks.0.mlp.fc1.weight"


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("vit_tiny", img_size=(64, 32), embed_dim=8, num_heads=1, depth=1)


def attempt(backbone, path):
    """Read the file and check it against the backbone; return the message of a refusal, or None."""
    try:
        checkpoint = read_checkpoint(path)
        not_finite(checkpoint.state)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return str(error)
    refused = []
    for step in (lambda: read_off(checkpoint.state), lambda: check_weights(backbone, path, strict=False)):
        try:
            step()
        except UserError as error:
            assert "\n" not in str(error)
            refused.append(str(error))
    return refused[-1] if refused else None


def saved(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def damaged(data, draw):
    """The bytes cut somewhere, or with some of the first ones replaced."""
    if draw.random() < 0.4:
        return data[: draw.randrange(2, len(data))]
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        changed[draw.randrange(2, min(len(data), 1500))] = draw.randrange(256)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
@fuzzed(150, 1000)
def test_files_with_damaged_bytes(tmp_path, backbone, kind, rounds):
    state = dict(list(backbone.state_dict().items())[:4])
    if kind == "safetensors":
        data = save(state)
    else:
        data = saved({"model": state, "epoch": 3}, _use_new_zipfile_serialization=kind == "zip")
    draw = random.Random(0)
    refused = 0
    path = tmp_path / "w.pth"
    for _ in range(rounds):
        path.write_bytes(damaged(data, draw))
        refused += attempt(backbone, path) is not None
    assert refused > rounds / 3


def families(state):
    """Names of several families, over the same tensors."""
    token, table = state["cls_token"], state["pos_embed"]
    parts = {f"part_token{i}": token for i in (1, 2)} | {f"{part}_pos": token for part in ("cls", "part1", "part2")}
    registers = {"register_tokens": token, "mask_token": token, "blocks.0.ls1.gamma": torch.ones(8)}
    dinov3 = {name: value for name, value in state.items() if name != "pos_embed"} | {"storage_tokens": token}
    branches = {"b1.0.norm1.weight": torch.ones(8), "b1.1.weight": torch.ones(8)}
    solider = {
        "patch_embed.projection.weight": torch.ones(8, 3, 4, 4),
        "stages.0.blocks.0.attn.w_msa.qkv.weight": torch.ones(24, 8),
        "stages.0.blocks.0.attn.w_msa.relative_position_bias_table": torch.ones(169, 1),
        "stages.0.blocks.0.norm1.weight": torch.ones(8),
        "stages.0.downsample.norm.weight": torch.ones(32),
        "stages.0.downsample.reduction.weight": torch.ones(16, 32),
        "semantic_embed_w.0.weight": torch.ones(8, 2),
        "norm0.weight": torch.ones(8),
    }
    return {
        "bare": state,
        "pass": state | parts | {"pos_embed": table[:, 1:]},
        "dinov2": state | registers,
        "dinov3": dinov3 | {"blocks.0.ls1.gamma": torch.ones(8), "blocks.0.ls2.gamma": torch.ones(8)},
        "jpm": {f"base.{name}": value for name, value in state.items()} | branches,
        "dino": {f"backbone.{name}": value for name, value in state.items()} | {"head.weight": torch.ones(2, 8)},
        "solider": solider,
        "swin": {name.replace("stages", "layers"): value for name, value in solider.items()},
    }


def unusual(value, draw):
    """A tensor of another kind or shape."""
    kinds = [
        lambda: torch.tensor(1.0),
        lambda: torch.zeros(0),
        lambda: value.flatten()[:3],
        lambda: value[None],
        lambda: value.to(torch.int8),
        lambda: value.to(torch.complex64),
        lambda: value.to(torch.float8_e4m3fn),
        lambda: value.to_sparse(),
        lambda: value.to("meta"),
        lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
    ]
    return draw.choice(kinds)()


@pytest.mark.filterwarnings("ignore")
@fuzzed(200, 1000)
def test_files_with_missing_and_unusual_tensors(tmp_path, backbone, rounds):
    draw, path = random.Random(0), tmp_path / "w.pth"
    for _ in range(rounds):
        content = dict(draw.choice(list(families(backbone.state_dict()).values())))
        telling = [name for name in content if "blocks" not in name] if draw.random() < 0.7 else list(content)
        for name in draw.sample(telling, min(draw.randint(1, 3), len(telling))):
            if draw.random() < 0.4:
                content.pop(name)
            else:
                content[name] = unusual(content[name], draw)
        torch.save(draw.choice([content, {"teacher": content}]), path)
        attempt(backbone, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"b1.0.norm1.weight": torch.zeros(2), "base.cls_token": torch.zeros(1, 1, 8)},
            r"by its names a re-identification model \(base\.\*\), but base\.blocks\.\* is missing",
        ),
        (
            {"part_token1": torch.zeros(1, 1, 8), "cls_pos": torch.zeros(1, 1, 8)},
            "by its names a checkpoint of PASS, but part1_pos is missing",
        ),
        (
            {"register_tokens": torch.zeros(1, 4, 8), "pos_embed": torch.zeros(1, 9, 8)},
            "but cls_token is missing",
        ),
    ],
)
def test_an_incomplete_file_is_named_by_its_family_and_the_missing_tensor(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth is a damaged or incomplete file: .*{message}"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        (lambda value: value.to(torch.int8), "int8"),
        (lambda value: value.to(torch.complex64), "complex"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), r"quantised \(qint8\)"),
        (lambda value: value.to(torch.float8_e4m3fn), r"quantised \(float8_e4m3fn\)"),
        (lambda value: value.to_sparse(), "sparse"),
        (lambda value: value.to("meta"), "without data"),
    ],
)
def test_tensors_that_are_no_weights_as_they_are_are_refused(tmp_path, backbone, convert, kind):
    state = backbone.state_dict()
    torch.save(state | {FC1: convert(state[FC1])}, tmp_path / "w.pth")
    for strict in (True, False):
        with pytest.raises(UserError, match=rf"w\.pth holds tensors that are not weights .*\({FC1}: {kind}"):
            load_weights(backbone, tmp_path / "w.pth", strict)


@pytest.mark.parametrize("header", ["{", "[1]", json.dumps({"format": "rayreid-backbone/1"})])
def test_a_damaged_header_is_refused(tmp_path, header):
    (tmp_path / "w.safetensors").write_bytes(save({"a": torch.zeros(1)}, metadata={"rayreid": header}))
    with pytest.raises(UserError, match=r"w\.safetensors is damaged: its header"):
        read_header(tmp_path / "w.safetensors")
