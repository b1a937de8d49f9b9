import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.positions import resample_positions
from rayreid.models.weights import load_backbone, save_backbone


def from_golden(case):
    """The ViT a parity file holds, its sizes from the weights' shapes.

    No shape shows the number of heads: where `meta` does not give it, it is the one that fits the file's outputs best.
    """
    if "heads" in case.meta:
        return with_heads(case, case.meta["heads"])
    width = case["state/cls_token"].shape[-1]
    images, expected = torch.from_numpy(case["x_local"]).float(), torch.from_numpy(case["y_local"])
    with torch.no_grad():
        tried = [with_heads(case, heads) for heads in range(1, width + 1) if width % heads == 0]
        return min(tried, key=lambda backbone: float((backbone(images) - expected).abs().max()))


def with_heads(case, heads):
    state = {name: torch.from_numpy(value) for name, value in case.state.items()}
    proj = state["patch_embed.proj.weight"]
    ics = "patch_embed.conv.0.weight" in state
    backbone = build_backbone(
        "vit_tiny",
        "ics" if ics else "patchify",
        img_size=case["x_global"].shape[-2:],
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        embed_dim=state["cls_token"].shape[-1],
        num_heads=heads,
        patch_size=proj.shape[-1] * (2 if ics else 1),
    )
    assert list(backbone.state_dict()) == list(state)  # the published names, in the published order
    backbone.load_state_dict(state)
    return backbone.eval()


@pytest.mark.parametrize("file", ["ics_vit.npz", "patchify_vit.npz"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_is_the_published_one(golden, file, dtype):
    case = golden(file)
    backbone = from_golden(case).to(dtype)
    for size in ("global", "local"):
        with torch.no_grad():
            y = backbone(torch.from_numpy(case[f"x_{size}"]).to(dtype))
        expected = case[f"y_{size}"]
        assert y.dtype == dtype
        assert np.abs(y.numpy() - expected).max() < 1e-5 * expected.std(), size


@pytest.mark.parametrize("file", ["ics_vit.npz", "patchify_vit.npz"])
def test_bf16_autocast_is_close_to_float32(golden, file):
    case = golden(file)
    backbone = from_golden(case)
    x = torch.from_numpy(case["x_local"]).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = backbone(x)
    assert F.cosine_similarity(y.float(), torch.from_numpy(case["y_local"])).min() > 0.999


def test_training_in_float64_reaches_every_parameter():
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", "ics", (64, 32), depth=2, embed_dim=48, drop_path=0.1).double()
    # a sum over the normalised feature would be constant
    (backbone(torch.randn(4, 3, 64, 32).double()) ** 3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def features_by_timm(backbone, crops):
    """One forward pass per size through every token of every block."""
    return torch.cat([backbone.forward_features(crop)[:, 0] for crop in crops])


@pytest.mark.parametrize("stem", ["patchify", "ics"])
def test_features_and_gradients_of_several_sizes_are_those_of_one_pass_per_size(stem):
    torch.manual_seed(0)
    ours = build_backbone("vit_tiny", stem, (64, 32), depth=3, embed_dim=48).double()
    theirs = copy.deepcopy(ours)
    crops = [torch.randn(4, 3, 64, 32).double(), torch.randn(6, 3, 32, 16).double()]
    features, expected = ours.features(crops), features_by_timm(theirs, crops)
    assert features.shape == (10, 48)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    for out in (features, expected):
        (out**3).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-11, msg=name)
    for name, value in ours.named_buffers():
        torch.testing.assert_close(value, theirs.get_buffer(name), msg=name)


@pytest.mark.parametrize("name", ["vit_small_dinov2", "vit_small_dinov2_reg4", "vit_giant_dinov2"])
def test_features_of_published_vits_are_those_of_timms_blocks(name):
    torch.manual_seed(0)
    ours = build_backbone(name, img_size=(56, 28), depth=3, embed_dim=48, num_heads=3).double()
    for key, parameter in ours.named_parameters():
        if "gamma" in key:
            parameter.data.uniform_(0.5, 1.5)
    theirs = copy.deepcopy(ours)
    crops = [torch.randn(4, 3, 56, 28).double(), torch.randn(6, 3, 28, 14).double()]
    features, expected = ours.features(crops), features_by_timm(theirs, crops)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    for out in (features, expected):
        (out**3).sum().backward()
    gradients = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_pass", {"depth": 1}),
        ("vit_small_dinov2_reg4", {"depth": 1, "img_size": (56, 28)}),
        ("vit_small_dinov3", {"depth": 1}),
        ("swin_tiny_solider", {"depths": (1, 1, 1, 1), "semantic_weight": 0.7}),
        ("resnet50_ibn", {}),
    ],
)
def test_published_networks_survive_a_round_trip(tmp_path, name, options):
    backbone = build_backbone(name, **{"img_size": (64, 32), **options}).eval()
    save_backbone(tmp_path / "b.safetensors", backbone, (0.5,) * 3, (0.5,) * 3)
    again, header = load_backbone(tmp_path / "b.safetensors")
    assert header["backbone"] == backbone.spec == again.spec
    images = torch.randn(2, 3, *backbone.spec["img_size"])
    with torch.no_grad():
        assert torch.equal(again.eval()(images), backbone(images))
        assert backbone(images).shape == (2, backbone.num_features)


def test_options_of_published_networks_are_checked():
    for name, options, reason in (
        ("swin_tiny_solider", {"semantic_weight": 1.5}, "a share from 0 to 1"),
        ("resnet50", {"last_stride": 3}, "last_stride is 1 or 2"),
        ("vit_small_dinov3", {"img_size": (250, 128)}, "not a multiple of the patch 16"),
        ("vit_small_dinov3", {"stem": "ics"}, "has its own stem"),
        ("vit_small_dino2", {}, "did you mean 'vit_small_dinov2'"),
    ):
        with pytest.raises(UserError, match=reason):
            build_backbone(name, **options)


def test_one_size_is_a_case_of_several():
    backbone = build_backbone("vit_tiny", img_size=(32, 16), depth=2, embed_dim=24, num_heads=2).eval()
    images = torch.randn(3, 3, 32, 16)
    torch.testing.assert_close(backbone(images), features_by_timm(backbone, [images]))
    torch.testing.assert_close(backbone(images), backbone.features([images]), rtol=0, atol=0)
    resnet = build_backbone("resnet50").eval()
    crops = [torch.randn(2, 3, 64, 32), torch.randn(1, 3, 32, 32)]
    torch.testing.assert_close(resnet.features(crops), torch.cat([resnet(crop) for crop in crops]))


def test_drop_path_takes_whole_crops_and_scales_the_others(monkeypatch):
    backbone = build_backbone("vit_tiny", img_size=(32, 16), depth=2, embed_dim=24, num_heads=2, drop_path=0.4)
    crops = [torch.randn(2, 3, 32, 16), torch.randn(3, 3, 16, 16)]
    draws = iter(torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 0, 1]]).float())
    monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda self, p: self.copy_(next(draws)))
    features = backbone.features(crops)
    assert next(draws, None) is None  # the first block drops nothing, the second one draws per branch

    def by_hand(crop, attends, thinks):
        x = backbone.blocks[0](backbone._pos_embed(backbone.patch_embed(crop)))
        last = backbone.blocks[1]
        x = x + attends / 0.6 * last.attn(last.norm1(x))
        return backbone.norm(x + thinks / 0.6 * last.mlp(last.norm2(x)))[:, 0]

    images = [crop[i : i + 1] for crop in crops for i in range(len(crop))]
    expected = [by_hand(*case) for case in zip(images, [1, 0, 1, 0, 0], [0, 1, 1, 0, 1], strict=True)]
    torch.testing.assert_close(features, torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "millions"), [("vit_small", 21.6), ("vit_base", 85.6)])
def test_parameter_counts(name, millions):
    with torch.device("meta"):
        backbone = build_backbone(name)
    count = sum(p.numel() for p in backbone.parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.01)


def test_drop_path_rises_linearly_to_the_given_rate():
    backbone = build_backbone("vit_tiny", depth=3, img_size=(32, 16), drop_path=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_positions_at_the_own_grid_are_the_table_itself():
    table = torch.randn(1, 9, 4)
    assert resample_positions(table, (4, 2), (4, 2)) is table
    out = resample_positions(table, (4, 2), (2, 4))  # as many tokens, another grid
    assert out.shape == table.shape and not torch.allclose(out, table)
    torch.testing.assert_close(out[:, 0], table[:, 0])


@pytest.mark.parametrize("old", [(16, 8), (4, 2), (24, 8), (14, 7)])
@pytest.mark.parametrize("new", [(8, 4), (2, 1), (16, 8), (15, 9)])
def test_positions_always_have_the_crops_grid(old, new):
    out = resample_positions(torch.randn(1, 1 + old[0] * old[1], 4), old, new)
    assert out.shape == (1, 1 + new[0] * new[1], 4)


def test_attention_maps_are_those_of_the_forward_pass(monkeypatch):
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", img_size=(64, 32), depth=2).eval()
    last = backbone.blocks[-1].attn
    for parameter in last.qkv.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(2, 3, 32, 48)
    maps = backbone.attention_maps(images)
    assert maps.shape == (2, 3, 6)
    seen = {}
    monkeypatch.setattr(last, "fused_attn", False)
    hook = last.attn_drop.register_forward_hook(lambda _m, _i, weights: seen.update(weights=weights))
    backbone.forward_features(images)  # timm's own
    hook.remove()
    torch.testing.assert_close(maps, seen["weights"][:, :, 0, 1:])
    with pytest.raises(UserError, match="resnet50"):
        build_backbone("resnet50").attention_maps(images)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny", {}),
        ("vit_small_dinov2_reg4", {"img_size": (56, 28)}),
        ("vit_small_pass", {}),
        ("vit_small_dinov3", {}),
    ],
)
def test_patch_features_are_the_mean_of_timm_s_patch_tokens(name, options):
    torch.manual_seed(0)
    backbone = build_backbone(name, depth=2, **{"img_size": (64, 32), **options}).eval()
    images = torch.randn(3, 3, *backbone.spec["img_size"])
    with torch.no_grad():
        tokens = backbone.forward_features(images)  # timm's own
        found = backbone.patch_features(images)
    torch.testing.assert_close(found, tokens[:, backbone.num_prefix_tokens :].mean(dim=1))
    assert (found - tokens[:, 0]).abs().max() > 0.01


def test_a_backbone_without_a_class_token_has_no_other_feature():
    with pytest.raises(UserError, match=r"^backbone resnet50 has no class token, .*: use token: class$"):
        build_backbone("resnet50").patch_features(torch.randn(1, 3, 64, 32))


@pytest.mark.parametrize("size", [(256, 128), (384, 128), (224, 112), (128, 64)])
def test_swin_runs_at_reid_sizes_and_on_local_crops(size):
    backbone = build_backbone("swin_tiny", img_size=size, depths=(1, 1, 2, 1)).eval()
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, *size)).shape == (1, 768)
        assert backbone(torch.randn(2, 3, size[0] // 2, size[1] // 2)).shape == (2, 768)
    assert backbone.num_features == 768


def test_swin_weights_fit_every_size():
    small, large = (build_backbone("swin_tiny", img_size=size, depths=(1, 1, 1, 1)) for size in ((128, 64), (384, 128)))
    large.load_state_dict(small.state_dict())


def test_resnet50():
    backbone = build_backbone("resnet50").double()
    assert backbone(torch.randn(2, 3, 64, 32).double()).shape == (2, backbone.num_features) == (2, 2048)
    assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(23.5e6, rel=0.01)


@pytest.mark.parametrize(
    "arguments",
    [
        {
            "name": "vit_tiny",
            "stem": "ics",
            "img_size": (64, 32),
            "depth": 2,
            "embed_dim": 48,
            "num_heads": 4,
        },
        {"name": "swin_tiny", "img_size": (64, 32), "depths": (1, 1, 1, 1)},
        {"name": "resnet50"},
    ],
)
def test_spec_builds_the_same_network_again(arguments):
    backbone = build_backbone(**arguments)
    again = build_backbone(**json.loads(json.dumps(backbone.spec)))
    assert again.spec == backbone.spec
    again.load_state_dict(backbone.state_dict())
    x = torch.randn(2, 3, 64, 32)
    torch.testing.assert_close(again.eval()(x), copy.deepcopy(backbone).eval()(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vit_smal"}, "'vit_small'"),
        ({"name": "vit_small", "stem": "isc"}, "'ics'"),
        ({"name": "vit_small", "embed_dims": 3}, "'embed_dim'"),
        ({"name": "vit_small", "img_size": (250, 128)}, "256x128"),
        ({"name": "swin_tiny", "img_size": (250, 128)}, "250x128"),
        ({"name": "swin_tiny", "stem": "ics"}, "vit_"),
        ({"name": "resnet50", "depth": 3}, "depth"),
        ({"name": "vit_small", "depth": 0}, "at least 1"),
        ({"name": "vit_small", "embed_dim": 50}, "num_heads"),
    ],
)
def test_faults_of_the_user_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        build_backbone(**arguments)
