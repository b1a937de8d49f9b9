import pytest
import torch

from rayreid.errors import UserError
from rayreid.models.architecture import read_off, recognise
from rayreid.models.backbones import NAMES, SWINS, VITS, build_backbone


def built(name, *arguments, **options):
    with torch.device("meta"):
        return build_backbone(name, *arguments, **options)


def same_network(backbone, spec):
    """Whether a spec builds the same: names, shapes, heads (which no tensor shows), positions."""
    other = built(**spec)
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in backbone.state_dict().items()}
    heads = [
        [getattr(module, "num_heads", None) for module in network.modules() if hasattr(module, "num_heads")]
        for network in (backbone, other)
    ]
    assert heads[0] == heads[1]
    return other


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_recognised(name):
    backbone = built(name, img_size=(252, 126) if "dinov2" in name else (256, 128))
    spec = recognise(backbone.state_dict())
    assert (spec["name"], spec["stem"]) == (name, "patchify")
    assert set(spec) <= {"name", "stem", "depth", "img_size"}, "what is the name's own is left out"
    same_network(backbone, spec)


@pytest.mark.parametrize("stem", ["patchify", "conv", "ics"])
@pytest.mark.parametrize("size", [(256, 128), (432, 144), (224, 224), (224, 112), (64, 32)])
def test_stem_size_and_depth_of_a_vit(stem, size):
    backbone = built("vit_small", stem, size, depth=3)
    spec = recognise(backbone.state_dict())
    assert spec == {"name": "vit_small", "stem": stem, "depth": 3, "img_size": list(size)}


def test_a_grid_that_has_two_readings_must_be_told():
    state = built("vit_small", img_size=(384, 128), depth=1).state_dict()
    with pytest.raises(UserError, match=r"192 positions are 24x8 or 16x12 .*384x128 or 256x192.*--img-size"):
        recognise(state)
    assert recognise(state, hint={"img_size": [256, 192]})["img_size"] == [256, 192]


def test_odd_widths_keep_64_channels_a_head_or_must_be_told():
    backbone = built("vit_small", "ics", embed_dim=512, num_heads=8, mlp_ratio=3, depth=2)
    spec = recognise(backbone.state_dict())
    assert (spec["name"], spec["embed_dim"], spec["num_heads"], spec["mlp_ratio"]) == ("vit_small", 512, 8, 3)
    same_network(backbone, spec)
    narrow = built("vit_tiny", "patchify", embed_dim=48, num_heads=3, depth=2).state_dict()
    with pytest.raises(UserError, match=r"width 48.*--num-heads"):
        recognise(narrow)
    assert recognise(narrow, hint={"num_heads": 3})["num_heads"] == 3
    assert recognise(narrow, hint={"num_heads": 4, "img_size": None})["img_size"] == [256, 128]


def test_heads_that_are_not_the_usual_ones_are_the_users_or_the_headers():
    backbone = built("vit_small", num_heads=12)
    assert "num_heads" not in recognise(backbone.state_dict())
    assert recognise(backbone.state_dict(), hint={"num_heads": 12})["num_heads"] == 12
    spec = recognise(backbone.state_dict(), header={"backbone": backbone.spec})
    assert spec == backbone.spec
    same_network(backbone, spec)


def test_the_header_knows_a_grid_that_cannot_be_guessed():
    backbone = built("vit_tiny", img_size=(80, 32))
    with pytest.raises(UserError, match=r"10 positions.*--img-size"):
        recognise(backbone.state_dict())
    assert recognise(backbone.state_dict(), hint={"img_size": [80, 32]})["img_size"] == [80, 32]
    assert recognise(backbone.state_dict(), header={"backbone": backbone.spec})["img_size"] == [80, 32]
    changed = recognise(backbone.state_dict(), header={"backbone": backbone.spec}, hint={"img_size": [96, 32]})
    assert changed["img_size"] == [96, 32]


@pytest.mark.parametrize("patch", [8, (16, 8)])
@pytest.mark.parametrize("stem", ["patchify", "ics"])
def test_patches_of_other_sizes(patch, stem):
    backbone = built("vit_tiny", stem, (128, 64), depth=1, patch_size=patch)
    grid = backbone.patch_embed.grid_size
    shape = read_off(backbone.state_dict())
    if isinstance(patch, int):
        assert shape.spec["img_size"] == [128, 64] and grid == (16, 8)
        same_network(backbone, shape.spec)
    assert shape.spec["patch_size"] == (patch if isinstance(patch, int) else list(patch))


def test_other_swins():
    for options in ({"depths": (1, 1, 2, 1)}, {"embed_dim": 48, "num_heads": (2, 4, 8, 16)}, {"window_size": 4}):
        backbone = built("swin_tiny", **options)
        same_network(backbone, recognise(backbone.state_dict()))


def test_networks_that_cannot_be_built_are_refused():
    resnet = built("resnet50").state_dict()
    for case, message in (
        ({"a": torch.zeros(2)}, "no backbone"),
        ({name: value for name, value in resnet.items() if not name.startswith("layer3.4")}, r"\(3, 4, 5, 3\)"),
        ({name: value for name, value in built("vit_tiny").state_dict().items() if "proj" not in name}, "patch_embed"),
        ({k: v for k, v in built("swin_tiny").state_dict().items() if "bias_table" not in k}, "relative positions"),
    ):
        with pytest.raises(UserError, match=message):
            recognise(case)


def test_tables_of_names_are_those_of_the_backbones():
    assert len({own["embed_dim"] for own in VITS.values()}) == len(VITS), "a ViT's name is told by its width"
    assert len({(own["embed_dim"], own["depths"]) for own in SWINS.values()}) == len(SWINS)
