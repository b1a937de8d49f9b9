import re
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml

from model_history import history, save
from rayreid import Model, UserError
from rayreid.models.neck import Neck
from rayreid.models.weights import read_header
from rayreid.publishing import publish as module
from rayreid.publishing.publication import read_publication
from rayreid.publishing.publish import FILES, publish
from rayreid.publishing.timm_config import lacks, timm_config

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def neck(width=192) -> Neck:
    torch.manual_seed(1)
    return Neck(torch.rand(width) + 0.5, torch.randn(width))


def normalised() -> torch.Tensor:
    """The images as the card says: in [0, 1], then mean and std of 0.5."""
    return torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255 * 2 - 1


def close(features, expected) -> bool:
    return bool(np.abs(np.asarray(features) - expected).max() < 1e-4 * expected.std())


def test_timm_onnxruntime_and_rayreid_give_the_features_of_the_model(root, tmp_path, capsys):
    for name, with_neck in (("plain", None), ("necked", neck())):
        file = save(tmp_path / f"{name}.safetensors", neck=with_neck, bnneck=None if with_neck else neck())
        expected = Model.load(file, device="cpu").embed(IMAGES, unit=False)
        folder = publish(str(file), str(tmp_path / name), "mit")
        assert {path.name for path in folder.iterdir()} == set(FILES)
        assert close(Model.load(folder, device="cpu").embed(IMAGES, unit=False), expected)
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            assert close(loaded(normalised()), expected)
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        assert close(session.run(["features"], {"images": normalised().numpy()})[0], expected)
        assert ("folded into" in (folder / "README.md").read_text()) == (name == "necked")
    assert "timm gives equal features" in capsys.readouterr().out


def test_timm_prepares_images_as_rayreid_does(root, tmp_path):
    from PIL import Image

    folder = publish(str(save(tmp_path / "a.safetensors")), str(tmp_path / "out"), "mit", onnx=False)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 70, 3), dtype=np.uint8))
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(loaded(transform(picture)[None])).numpy()
    ours = Model.load(folder, device="cpu").embed(picture)
    assert float((ours * theirs).sum()) > 0.9999


@pytest.mark.parametrize(
    ("spec", "with_neck", "lacking"),
    [
        ({"stem": "ics"}, False, "the stem ics"),
        ({"name": "vit_small_pass", "depth": 1}, True, "the network vit_small_pass as rayreid builds it"),
        ({"layer_scale": True}, False, "layer_scale"),
    ],
    ids=["ics", "pass", "option"],
)
def test_what_timm_lacks_is_told_and_rayreid_loads_it(root, tmp_path, spec, with_neck, lacking):
    file = save(tmp_path / "a.safetensors", neck=neck(768) if with_neck else None, **spec)
    folder = publish(str(file), str(tmp_path / "out"), "mit", onnx=False)
    assert {path.name for path in folder.iterdir()} == {"README.md", "model.safetensors"}
    card = (folder / "README.md").read_text()
    assert f"timm does not have {lacking}, so `timm.create_model` cannot load this model" in card
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "rayreid"
    expected = Model.load(file, device="cpu").embed(IMAGES, unit=False)
    assert close(Model.load(folder, device="cpu").embed(IMAGES, unit=False), expected)


def test_a_neck_that_no_norm_precedes_stays_a_layer_in_onnx(root, tmp_path):
    file = save(tmp_path / "a.safetensors", neck=neck(768), name="vit_small_pass", depth=1)
    folder = publish(str(file), str(tmp_path / "out"), "mit")
    expected = Model.load(file, device="cpu").embed(IMAGES, unit=False)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert close(session.run(["features"], {"images": normalised().numpy()})[0], expected)


def test_swins_and_dinov3_load_in_timm(root, tmp_path):
    small = {"depths": (1, 1, 1, 1), "embed_dim": 24, "depth": None}
    for spec in ({"name": "swin_tiny", **small}, {"name": "vit_small_dinov3", "depth": 1}):
        file = save(tmp_path / "a.safetensors", neck=neck(384 if "vit" in spec["name"] else 192), **spec)
        folder = publish(str(file), str(tmp_path / spec["name"]), "mit", onnx=False)
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            features = loaded(normalised())
        assert close(features, Model.load(file, device="cpu").embed(IMAGES, unit=False)), spec["name"]


def test_nothing_published_names_a_place_of_the_machine(root, tmp_path):
    model = history(root)[0]
    folder = publish(str(model.path), str(tmp_path / "out"), "mit")
    places = [
        str(root),
        str(tmp_path),
        str(Path.home()),
        tempfile.gettempdir(),
        "/home/",
        str(Path(module.__file__).parent),
    ]
    for path in folder.iterdir():
        for one in places:
            assert one.encode() not in path.read_bytes(), f"{path.name}: {one}"
    assert set(read_header(folder / "model.safetensors")) == {"format", "backbone", "mean", "std", "method", "epochs"}


def test_a_folder_that_is_not_empty_is_replaced_only_when_asked_to(root, tmp_path):
    file, folder = str(save(tmp_path / "a.safetensors")), tmp_path / "out"
    folder.mkdir()
    publish(file, str(folder), "mit", onnx=False)
    with pytest.raises(UserError, match=r"this folder is not empty; name another one, or --force") as caught:
        publish(file, str(folder), "mit", onnx=False)
    assert "\n" not in str(caught.value)
    (folder / ".gitattributes").write_text("kept")
    other = str(save(tmp_path / "b.safetensors", stem="ics"))
    publish(other, str(folder), "mit", onnx=False, force=True)
    assert {path.name for path in folder.iterdir()} == {".gitattributes", "README.md", "model.safetensors"}
    assert read_header(folder / "model.safetensors")["backbone"]["stem"] == "ics"


def test_what_fails_leaves_nothing(root, tmp_path, monkeypatch):
    file = str(save(tmp_path / "a.safetensors"))

    def refuse(*arguments):
        raise UserError("not published")

    monkeypatch.setattr(module, "check_timm", refuse)
    with pytest.raises(UserError, match="not published"):
        publish(file, str(tmp_path / "out"), "mit", onnx=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_cannot_be_published_is_refused_in_one_line(root, tmp_path, monkeypatch):
    file = str(save(tmp_path / "a.safetensors"))
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "taken" / "README.md").mkdir(parents=True)
    (tmp_path / "taken" / "model.safetensors").write_text("old")
    artifact = history(root)[0].path
    out = str(tmp_path / "out")
    for arguments, message in (
        ((file, str(tmp_path / "file"), "mit"), "file: there is a file at this path; name a folder"),
        ((file, str(tmp_path / "no" / "out"), "mit"), "there is no folder .*no; make it first"),
        ((file, str(artifact), "mit"), "this is an artifact; name another folder"),
        ((file, str(tmp_path / "dangling"), "mit"), "dangling: this link leads to nothing; make its folder first"),
        ((file, "", "mit"), "a path is empty, .*; name the file or folder"),
        ((file, str(tmp_path / "taken"), "mit"), r"README\.md: this is a folder, and a file of this name"),
        ((file, out, "see my page"), "--license see my page: model hubs do not know this identifier"),
        ((file, out, ""), "--license : model hubs do not know"),
        (("gone.safetensors", out, "mit"), "gone.safetensors: no artifact there"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            publish(*arguments, force=True, onnx=False)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(
        module, "require_onnx", lambda: (_ for _ in ()).throw(UserError("needs onnx: pip install onnx"))
    )
    with pytest.raises(UserError, match=r"needs onnx: pip install onnx, or publish without it: --no-onnx"):
        publish(file, out, "mit")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "taken" / "model.safetensors").read_text() == "old"


def test_a_link_to_a_folder_stands_for_the_folder(root, tmp_path):
    file = str(save(tmp_path / "a.safetensors"))
    (tmp_path / "disk").mkdir()
    inode = (tmp_path / "disk").stat().st_ino
    (tmp_path / "my-model").symlink_to("disk")
    folder = publish(file, str(tmp_path / "my-model"), "mit", onnx=False)
    assert folder == tmp_path / "my-model" and folder.is_symlink()
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert (tmp_path / "disk").stat().st_ino == inode  # it may be a mount point, which cannot be replaced
    assert "\n# my-model\n" in (folder / "README.md").read_text()


def test_an_interrupted_replacement_leaves_no_card_of_other_weights(root, tmp_path, monkeypatch):
    file = str(save(tmp_path / "a.safetensors"))
    folder = publish(file, str(tmp_path / "out"), "mit", onnx=False)
    replace = Path.replace

    def full(self, target):
        if self.name == "config.json":
            raise OSError(28, "No space left on device", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises((UserError, OSError)):
        publish(file, str(folder), "mit", onnx=False, force=True)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_the_configuration_has_the_layout_of_model_hubs(tmp_path):
    published = read_publication(save(tmp_path / "a.safetensors", embed_dim=48))
    config = timm_config(published.backbone, {**published.header, "interpolation": "bicubic"})
    assert lacks(published.backbone) == ""
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["num_features"] == 48
    assert config["model_args"] == {"img_size": (64, 32), "depth": 1, "embed_dim": 48}
    assert config["pretrained_cfg"] == {
        **{"tag": "rayreid", "custom_load": False, "num_classes": 0, "first_conv": "patch_embed.proj"},
        **{"input_size": [3, 64, 32], "fixed_input_size": True, "interpolation": "bicubic", "classifier": "head"},
        **{"crop_pct": 1.0, "crop_mode": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }


def test_the_name_of_a_model_is_one_line(root, tmp_path):
    file = str(save(tmp_path / "a.safetensors"))
    folder = publish(file, str(tmp_path / "out"), "MIT", name="two\nlines", onnx=False)
    assert re.search(r"^# two\\nlines$", (folder / "README.md").read_text(), re.MULTILINE)
    assert yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])["license"] == "mit"
