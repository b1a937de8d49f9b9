"""`rayreid weights`: what a person sees of a file, what is written, and how trouble is told."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rayreid.cli import main
from rayreid.models.backbones import build_backbone
from rayreid.models.weights import load_backbone, read_header, save_backbone

PLATFORM = Path(__file__).parents[2] / "platform"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def vit(**options):
    torch.manual_seed(0)
    return build_backbone(**{"name": "vit_small", "stem": "ics", "img_size": (64, 32), "depth": 1, **options})


@pytest.fixture
def ours(tmp_path) -> Path:
    save_backbone(tmp_path / "ours.safetensors", vit(), MEAN, STD, method="dino", epochs=3)
    return tmp_path / "ours.safetensors"


@pytest.fixture
def weights(capfd):
    """Run `rayreid weights …`; gives exit status, output and errors."""

    def weights(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["weights", *map(str, arguments)])
        shown = capfd.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return weights


@pytest.fixture
def refused(weights, tmp_path):
    """Run a command that must be refused and leave no file; gives its one line."""

    def refused(*arguments: str | Path) -> str:
        before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        code, _, errors = weights(*arguments)
        assert code == 2
        assert errors.startswith("rayreid: ") and errors.count("\n") == 1 and errors.endswith("\n"), errors
        assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
        return errors

    return refused


def lines(shown: str) -> dict[str, str]:
    """What `inspect` shows, by the name on the left."""
    return {line[:14].strip(): line[14:].strip() for line in shown.splitlines()}


def published(path: Path, **options) -> Path:
    """A pre-training checkpoint of TransReID-SSL."""
    teacher = {"module.backbone." + name: value for name, value in vit(**options).state_dict().items()}
    teacher |= {f"module.head.mlp.{i}.weight": torch.zeros(2, 2) for i in (0, 2)}
    args = argparse.Namespace(arch="vit_small")
    torch.save({"student": {}, "teacher": teacher, "epoch": 7, "args": args}, path)
    return path


# inspect


def test_what_a_file_of_ours_holds(weights, ours):
    code, shown, errors = weights("inspect", ours)
    assert (code, errors) == (0, "")
    backbone = vit()
    count = sum(parameter.numel() for parameter in backbone.parameters())
    tensors = backbone.state_dict()
    whole = sum(value.dtype == torch.int64 for value in tensors.values())
    found = lines(shown)
    assert found["architecture"] == "vit_small, 1 blocks, width 384, 6 heads" and found["stem"] == "ics"
    assert found["image size"] == "64x32, a grid of 4x2"
    assert found["parameters"] == f"{count:,} ({count / 1e6:.1f} M)"
    assert found["tensors"] == f"{len(tensors)}: {len(tensors) - whole} float32, {whole} int64"
    assert found["mean, std"] == "0.485/0.456/0.406, 0.229/0.224/0.225"
    assert found["facts"] == "method dino, epochs 3"
    assert found["loads"].startswith("whole")


def test_what_a_published_file_holds(weights, tmp_path):
    code, shown, _ = weights("inspect", published(tmp_path / "w.pth"))
    found = lines(shown)
    assert code == 0 and found["loads"].startswith("whole")
    assert "TransReID-SSL" in found["format"] and "teacher" in found["format"]
    assert found["facts"] == "arch vit_small, epoch 7"
    assert "6 heads (its width's usual number)" in found["architecture"]
    assert found["image size"] == "64x32, a grid of 4x2 (by the number of its positions)"
    assert found["ignored"] == "projection head (2)" and found["mean, std"] == "not in the file"


def test_other_networks_are_described(weights, tmp_path):
    for name, expected in (("swin_tiny", "2/2/6/2 blocks, windows of 7"), ("resnet50", "resnet50")):
        save_file(build_backbone(name).state_dict(), tmp_path / name)
        code, shown, _ = weights("inspect", tmp_path / name)
        found = lines(shown)
        assert code == 0 and expected in found["architecture"] and "stem" not in found
        assert found["image size"].startswith("any")


def test_what_tensors_do_not_tell_is_said(weights, tmp_path):
    save_file(vit(embed_dim=48, num_heads=3, img_size=(80, 32)).state_dict(), tmp_path / "w")
    code, shown, _ = weights("inspect", tmp_path / "w")
    found = lines(shown)
    assert code == 0 and found["loads"].startswith("whole")
    assert "--num-heads" in found["architecture"] and "--img-size" in found["image size"]


def test_every_key_is_listed_when_asked_for(weights, tmp_path):
    shown = weights("inspect", published(tmp_path / "w.pth"), "--keys")[1]
    listed = {tuple(line.split()) for line in shown.splitlines()}
    for name, value in vit().state_dict().items():
        row = (name, "x".join(map(str, value.shape)) or "1", str(value.dtype).removeprefix("torch."))
        assert row in listed
    assert any("head.mlp.2.weight" in row[0] and row[1:3] == ("left", "out:") for row in listed if row)


def test_a_file_that_would_not_load_is_described_and_then_refused(weights, tmp_path):
    state = vit().state_dict()
    state["blocks.0.mlp.fc3.weight"] = state.pop("blocks.0.mlp.fc1.weight")
    state["norm.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "w")
    code, shown, errors = weights("inspect", tmp_path / "w")
    assert code == 2 and "vit_small" in shown and "loads" not in lines(shown)
    assert "1 missing: blocks.0.mlp.fc1.weight; 1 unexpected: blocks.0.mlp.fc3.weight" in errors
    assert "1 of another shape: norm.bias" in errors and errors.count("\n") == 1


def test_tensors_that_are_not_finite_are_listed_and_refused(weights, refused, tmp_path):
    state = vit(stem="patchify").state_dict()
    state["blocks.0.mlp.fc2.weight"][0, 0] = float("nan")
    state["norm.bias"][:2] = float("inf")
    torch.save({"model": state}, tmp_path / "w.pth")
    code, shown, errors = weights("inspect", tmp_path / "w.pth")
    assert code == 2 and "not finite: blocks.0.mlp.fc2.weight (1 NaN of 589,824 values), norm.bias" in errors
    assert "not finite    blocks.0.mlp.fc2.weight: 1 NaN of 589,824 values" in shown
    assert "not finite    norm.bias: 2 infinite of 384 values" in shown
    assert "not finite" in refused("convert", tmp_path / "w.pth", "--to", "timm")


def test_what_fits_is_converted_where_that_was_asked_for(weights, refused, tmp_path):
    state = vit(stem="patchify").state_dict()
    del state["norm.bias"]
    torch.save(state, tmp_path / "w.pth")
    assert "(of a command: --no-strict) would take 17 of the 18" in refused(
        "convert", tmp_path / "w.pth", "--to", "timm"
    )
    code, shown, _ = weights("convert", tmp_path / "w.pth", "--to", "timm", "--no-strict")
    assert code == 0 and "not complete, the rest as initialised: 1 missing: norm.bias" in shown
    assert (tmp_path / "w.timm.safetensors").exists()


def test_networks_of_published_models_are_described(weights, tmp_path):
    options = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    for name, made, shown in (
        ("vit_small_dinov3", {"depth": 1}, "vit_small_dinov3, 1 blocks, width 384, 6 heads"),
        ("swin_tiny_solider", options, "windows of 7, semantic_weight 0.2"),
        ("resnet50_ibn", {}, "resnet50_ibn"),
    ):
        torch.save(build_backbone(name, **made).state_dict(), tmp_path / "w.pth")
        code, out, _ = weights("inspect", tmp_path / "w.pth")
        assert code == 0 and shown in lines(out)["architecture"]
        assert lines(out)["image size"] == "any: the weights do not depend on it"


def test_a_family_that_cannot_be_built_is_refused_by_its_name(refused, tmp_path):
    torch.save({"image_encoder.transformer.resblocks.0.ln_1.weight": torch.zeros(2)}, tmp_path / "w.pth")
    for command in (["inspect", tmp_path / "w.pth"], ["convert", tmp_path / "w.pth", "--to", "timm"]):
        assert "a model of CLIP-ReID of another architecture" in refused(*command)


def test_files_that_hold_no_backbone(refused, tmp_path):
    assert "does not exist" in refused("inspect", tmp_path / "none")
    save_file({"a": torch.zeros(2)}, tmp_path / "w")
    assert "no backbone" in refused("inspect", tmp_path / "w")
    (tmp_path / "w").write_text("a text about weights")
    assert "is not a weights file" in refused("inspect", tmp_path / "w")


# convert


@pytest.mark.parametrize("stem", ["patchify", "conv", "ics"])
@pytest.mark.parametrize("form", ["timm", "transreid"])
def test_ours_to_theirs_to_ours_is_exact(weights, tmp_path, form, stem):
    backbone = vit(stem=stem)
    save_backbone(tmp_path / "ours.safetensors", backbone, MEAN, STD, method="dino")
    code, shown, _ = weights("convert", tmp_path / "ours.safetensors", "--to", form)
    theirs = Path(re.search(r"written: (\S+)", shown)[1])
    assert code == 0 and theirs.name == f"ours.{form}.{'pth' if form == 'transreid' else 'safetensors'}"
    assert "not in the file: image size 64x32, mean 0.485/0.456/0.406, std 0.229/0.224/0.225, method dino" in shown
    again = tmp_path / "again.safetensors"
    numbers = ["--mean", *map(str, MEAN), "--std", *map(str, STD)]
    code, shown, _ = weights("convert", theirs, "--to", "safetensors", "--output", again, *numbers)
    assert code == 0 and str(again) in shown
    loaded, header = load_backbone(again)
    assert (header["mean"], header["std"], header["backbone"]["img_size"]) == ([*MEAN], [*STD], [64, 32])
    assert list(loaded.state_dict()) == list(backbone.state_dict())
    for name, value in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_file_of_ours_keeps_its_facts(weights, ours, tmp_path):
    assert weights("convert", ours, "--to", "safetensors", "--img-size", "96", "32")[0] == 0
    header = read_header(tmp_path / "ours.rayreid.safetensors")
    assert (header["method"], header["epochs"], header["mean"]) == ("dino", 3, [*MEAN])
    assert header["backbone"]["img_size"] == [96, 32]


def test_a_published_file_becomes_ours_with_its_normalisation(weights, tmp_path):
    code, shown, _ = weights("convert", published(tmp_path / "w.pth"), "--to", "safetensors")
    assert code == 0 and "assumed" in shown and "left out on purpose: projection head (2)" in shown
    header = read_header(tmp_path / "w.rayreid.safetensors")
    assert (header["mean"], header["std"]) == ([*MEAN], [*STD])


def test_a_normalisation_that_nobody_knows_must_be_said(refused, weights, tmp_path):
    torch.save(vit().state_dict(), tmp_path / "w.pth")
    for some in ([], ["--mean", "0.5", "0.5", "0.5"]):
        message = refused("convert", tmp_path / "w.pth", "--to", "safetensors", *some)
        assert str(tmp_path / "w.pth") in message and "--mean" in message and "--std" in message
    half = ("0.5", "0.5", "0.5")
    code, shown, _ = weights("convert", tmp_path / "w.pth", "--to", "safetensors", "--mean", *half, "--std", *half)
    assert code == 0 and "assumed" not in shown
    assert read_header(tmp_path / "w.rayreid.safetensors")["mean"] == [0.5] * 3


def test_what_was_resampled_is_said(weights, tmp_path):
    save_file(vit(stem="patchify", img_size=(64, 64)).state_dict(), tmp_path / "w.safetensors")
    code, shown, _ = weights("convert", tmp_path / "w.safetensors", "--to", "transreid", "--img-size", "64", "32")
    assert code == 0 and "resampled to 64x32: pos_embed" in shown
    assert torch.load(tmp_path / "w.transreid.pth", weights_only=True)["pos_embed"].shape[1] == 9


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_kept(weights, tmp_path, dtype):
    state = vit(stem="patchify").to(dtype).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    assert weights("convert", tmp_path / "w.safetensors", "--to", "transreid")[0] == 0
    written = torch.load(tmp_path / "w.transreid.pth", weights_only=True)
    assert all(torch.equal(written[name], value) and written[name].dtype == dtype for name, value in state.items())


def test_an_existing_file_is_replaced_only_when_told(refused, weights, ours, tmp_path):
    (tmp_path / "w.pth").write_text("precious")
    arguments = ("convert", ours, "--to", "transreid", "--output", tmp_path / "w.pth")
    assert "--force" in refused(*arguments)
    assert weights(*arguments, "--force")[0] == 0
    assert (tmp_path / "w.pth").read_bytes() != b"precious"
    assert "to be read" in refused("convert", ours, "--to", "safetensors", "--output", ours, "--force")


def test_outputs_that_cannot_be(refused, ours, tmp_path):
    (tmp_path / "folder.pth").mkdir()
    for form, output, told in (
        ("pytorch", "w.pth", "choose safetensors, timm, transreid"),
        ("transreid", "w.safetensors", r"*.pth"),
        ("timm", "w.bin", "*.safetensors or *.pth"),
        ("timm", "none/w.pth", "folder does not exist"),
        ("timm", "folder.pth", "is a folder"),
    ):
        assert told in refused("convert", ours, "--to", form, "--output", tmp_path / output)


def test_files_that_cannot_be_converted(refused, tmp_path):
    save_file(build_backbone("resnet50").state_dict(), tmp_path / "r.safetensors")
    assert "--to timm" in refused("convert", tmp_path / "r.safetensors", "--to", "transreid")
    save_file(vit(embed_dim=48, num_heads=3).state_dict(), tmp_path / "odd.safetensors")
    message = refused("convert", tmp_path / "odd.safetensors", "--to", "timm")
    assert "odd.safetensors" in message and "--num-heads" in message
    save_file(vit(img_size=(80, 32)).state_dict(), tmp_path / "grid.safetensors")
    assert "--img-size" in refused("convert", tmp_path / "grid.safetensors", "--to", "timm")
    state = vit().state_dict()
    del state["norm.bias"]
    save_file(state, tmp_path / "short.safetensors")
    assert "1 missing: norm.bias" in refused("convert", tmp_path / "short.safetensors", "--to", "timm")


# export


def test_an_onnx_file_is_compared_and_described(refused, weights, tmp_path):
    save_backbone(tmp_path / "w", vit(name="vit_tiny"), MEAN, STD)
    code, shown, errors = weights("export", tmp_path / "w", "--onnx", tmp_path / "w.onnx")
    assert (code, errors) == (0, "") and (tmp_path / "w.onnx").stat().st_size > 0
    assert "images (B, 3, 64, 32) to features (B, 192)" in shown
    assert re.search(r"batches of 1 and 3: differs by at most \d\.\de-\d\d standard deviations.*1e-04 allowed", shown)
    assert "--force" in refused("export", tmp_path / "w", "--onnx", tmp_path / "w.onnx")


def test_missing_packages_are_told_before_any_work(refused, ours, tmp_path, monkeypatch):
    monkeypatch.setattr("rayreid.models.onnx_export.PACKAGES", ("onnx", "no_such_package"))
    message = refused("export", ours, "--onnx", tmp_path / "w.onnx")
    assert "needs the extra rayreid[onnx]: pip install no_such_package" in message


def test_it_starts_without_ray_mlflow_and_onnx(ours):
    program = (
        "import sys\nfrom rayreid.cli import main\n"
        f"try:\n    main(['weights', 'inspect', {str(ours)!r}])\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        "assert not {'ray', 'mlflow', 'onnx', 'onnxruntime'} & set(sys.modules), 'inspect imports too much'"
    )
    env = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "vit_small" in done.stdout
