import math
import zipfile

import pytest
import timm
import torch

from rayreid.errors import UserError
from rayreid.models import stems
from rayreid.models.architecture import recognise
from rayreid.models.backbones import build_backbone
from rayreid.models.checkpoints import read_checkpoint
from rayreid.models.conversion import timm_call, write_timm, write_transreid
from rayreid.models.weights import load_weights

STEMS = ["patchify", "conv", "ics"]


def vit(stem="ics", **options):
    torch.manual_seed(0)
    backbone = build_backbone("vit_small", stem, **{"depth": 2, "img_size": (64, 32), **options})
    for buffer in backbone.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2.0)
    return backbone.eval()


def back(path, **hint):
    """The backbone that a foreign file holds."""
    backbone = build_backbone(**recognise(read_checkpoint(path).state, hint=hint))
    load_weights(backbone, path)
    return backbone.eval()


def assert_bitwise(backbone, other):
    ours, theirs = backbone.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize(
    ("write", "name"),
    [(write_timm, "w.safetensors"), (write_timm, "w.pth"), (write_transreid, "w.pth")],
)
def test_there_and_back_is_exact(tmp_path, stem, write, name):
    backbone = vit(stem)
    notes = write(tmp_path / name, backbone)
    assert notes and all("\n" not in note for note in notes)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    other = back(tmp_path / name)
    assert_bitwise(other, backbone)
    assert (other.spec["name"], other.spec["stem"], other.spec["img_size"]) == ("vit_small", stem, [64, 32])
    images = torch.randn(2, 3, 64, 32)
    assert torch.equal(other(images), backbone(images)), "the heads are the same, too"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small", {"img_size": (256, 128), "depth": 1}),
        ("vit_tiny", {"stem": "ics", "img_size": (64, 32), "depth": 1}),
        ("vit_tiny", {"stem": "conv", "depth": 1, "embed_dim": 96, "num_heads": 4, "patch_size": 8, "mlp_ratio": 3.0}),
        ("swin_tiny", {"img_size": (128, 64), "depths": (1, 1, 2, 1)}),
        ("resnet50", {}),
        ("vit_small_dinov2", {"img_size": (252, 126), "depth": 1}),
        ("vit_small_dinov2_reg4", {"img_size": (252, 126), "depth": 1}),
        ("vit_small_plus_dinov3", {"depth": 1}),
        ("vit_small_dinov3", {"depth": 1, "qkv_bias": True}),
    ],
)
def test_timm_takes_the_file_by_the_call_that_is_printed(tmp_path, name, options):
    torch.manual_seed(0)
    backbone = build_backbone(name, **options).eval()
    call = write_timm(tmp_path / "w.pth", backbone)[0].removeprefix("to load it: ")
    model = eval(call, {"timm": timm, "ICSStem": stems.ICSStem, "ConvStem": stems.ConvStem}).eval()
    model.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True), strict=True)
    images = torch.randn(2, 3, *backbone.spec["img_size"])
    with torch.no_grad():
        expected = backbone(images)
        # the same sums in another order: the tolerance of the parity cases
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_pass", {"depth": 1}),
        ("swin_tiny_solider", {"depths": (1, 1, 1, 1)}),
        ("resnet50_ibn", {}),
        ("resnet50", {"last_stride": 1}),
    ],
)
def test_networks_that_timm_does_not_have_are_not_written(tmp_path, name, options):
    with pytest.raises(UserError, match=rf"timm has no network like {name} .*--to safetensors"):
        write_timm(tmp_path / "w.pth", build_backbone(name, **options))
    assert not (tmp_path / "w.pth").exists()


def test_the_stem_that_timm_lacks_is_said(tmp_path):
    assert "from rayreid.models.stems import ICSStem" in write_timm(tmp_path / "w.pth", vit("ics"))[1]
    assert len(write_timm(tmp_path / "w.pth", vit("patchify"))) == 1
    assert timm_call(vit("patchify", depth=12).spec) == (
        "timm.create_model('vit_small_patch16_224', num_classes=0, img_size=(64, 32))"
    )


class AuthorsLoader:
    """What both `TransReID.load_param` ask of a pre-trained file, as read from them: names, containers, sizes."""

    def __init__(self, wanted: dict[str, torch.Size], hw_ratio: int):
        self.wanted, self.hw_ratio = wanted, hw_ratio

    def take(self, content) -> set[str]:
        assert not {"model", "state_dict", "teacher"} & set(content), "would be unpacked"
        taken = set()
        for name, value in content.items():
            assert not any(part in name for part in ("head", "dist", "pre_logits", "fc.", "classifier", "bottleneck"))
            assert not name.startswith(("module.", "base")), "only one of the two strips these"
            if name == "pos_embed" and value.shape != self.wanted[name]:
                positions = value.shape[1] - 1
                height = int(math.sqrt(positions * self.hw_ratio))
                assert height * (height // self.hw_ratio) == positions, "cannot be resized"
            else:
                assert value.shape == self.wanted[name], name
            taken.add(name)
        return taken


@pytest.mark.parametrize("stem", ["patchify", "ics"])
@pytest.mark.parametrize(("written", "trained"), [((64, 32), (64, 32)), ((64, 32), (96, 32)), ((96, 32), (64, 32))])
def test_the_authors_code_takes_all_of_it(tmp_path, stem, written, trained):
    backbone = vit(stem, img_size=written)
    notes = write_transreid(tmp_path / "w.pth", backbone)
    ratio = written[0] // written[1]
    assert f"PRETRAIN_HW_RATIO {ratio}" in notes[0]
    wanted = {name: value.shape for name, value in vit(stem, img_size=trained).state_dict().items()}
    content = torch.load(tmp_path / "w.pth", weights_only=True)
    assert AuthorsLoader(wanted, ratio).take(content) == set(wanted)
    assert all(type(value) is torch.Tensor for value in content.values())
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:  # PyTorch 1.6 to 1.8, which that code needs, read this one
        version = next(name for name in archive.namelist() if name.endswith("/version"))
        assert archive.read(version).strip() == b"3"


def test_what_the_authors_code_cannot_build_is_said(tmp_path):
    def notes(**options):
        return " ".join(write_transreid(tmp_path / "w.pth", build_backbone(**options)))

    assert "STEM_CONV" in notes(name="vit_small", stem="ics") and "needs a change" not in notes(name="vit_small")
    assert "patchify and ics only" in notes(name="vit_small", stem="conv")
    for options in ({"name": "vit_tiny"}, {"name": "vit_small", "depth": 3}, {"name": "vit_small", "num_heads": 12}):
        assert "needs a change there" in notes(**options)
    assert "only for 80x32" in notes(name="vit_small", img_size=(80, 32))
    with pytest.raises(UserError, match=r"resnet50.*--to timm"):
        write_transreid(tmp_path / "r.pth", build_backbone("resnet50"))
    assert not (tmp_path / "r.pth").exists()
