"""Files in the layouts that published projects use, as small networks, compared with timm's class or plain code."""

import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from rayreid.errors import UserError
from rayreid.models.architecture import recognise
from rayreid.models.backbones import build_backbone
from rayreid.models.checkpoints import read_checkpoint
from rayreid.models.formats import TITLES
from rayreid.models.weights import check_weights, load_weights
from small_resnet import SmallResNet

TIED = {"embed_dim": 64, "num_heads": 1}


def drawn(model, seed=0):
    """The model with every tensor drawn, also those that start at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and "relative_position_index" not in name:
            scale = value[0].numel() ** -0.5 if value.dim() > 1 else 0.2
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
        if name.endswith("running_var") or (name.endswith("weight") and value.dim() == 1):
            value.abs_().add_(0.5)
    return model.eval()


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def renamed(state, *patterns):
    for old, new in patterns:
        state = {re.sub(old, new, name): value for name, value in state.items()}
    return state


def loaded(path, content, **hint):
    """The backbone of a file, built by what the file reveals, and the report of loading it."""
    torch.save(content, path)
    checkpoint = read_checkpoint(path)
    backbone = build_backbone(**recognise(checkpoint.state, hint={**checkpoint.facts_of_shape(), **hint})).eval()
    report = load_weights(backbone, path)
    assert report.whole
    return backbone, report


def images(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_equal_features(backbone, expected, size):
    """The features are those of a reference, to 1e-5 standard deviations."""
    x = images(*size)
    wanted = expected(x)
    assert wanted.std() > 0.01
    torch.testing.assert_close(backbone(x), wanted, rtol=0, atol=1e-5 * float(wanted.std()))


# DINOv2 and DINOv3: timm has the classes


def dinov2(name, **options):
    return drawn(timm.create_model(name, num_classes=0, img_size=(252, 126), depth=3, **options))


def chunked(state):
    """FSDP's chunks of two blocks; a block keeps its number in its chunk."""
    return {
        re.sub(r"^blocks\.(\d+)\.", lambda at: f"blocks.{int(at[1]) // 2}.{at[1]}.", n): v for n, v in state.items()
    }


@pytest.mark.parametrize("wrap", [dict, chunked, lambda s: {"teacher": under("backbone.", chunked(s))}])
def test_dinov2(tmp_path, wrap):
    theirs = dinov2("vit_small_patch14_dinov2")
    state = theirs.state_dict() | {"mask_token": torch.zeros(1, 384)}
    backbone, report = loaded(tmp_path / "w.pth", wrap(state))
    assert backbone.spec["name"] == "vit_small_dinov2" and backbone.spec["img_size"] == [252, 126]
    assert list(report.ignored.values()) == ["mask token of the pre-training"]
    assert_equal_features(backbone, theirs, (252, 126))


def test_dinov2_giant_has_swiglu(tmp_path):
    theirs = dinov2("vit_giant_patch14_dinov2", embed_dim=192, num_heads=3)
    state = renamed(theirs.state_dict(), (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"))
    backbone, report = loaded(tmp_path / "w.pth", state | {"mask_token": torch.zeros(1, 192)})
    assert backbone.spec["name"] == "vit_giant_dinov2" and report.format == "dinov2"
    assert_equal_features(backbone, theirs, (252, 126))


def with_registers(state):
    """DINOv2's layout: the class token and its position apart."""
    position = torch.randn(1, 1, 384, generator=torch.Generator().manual_seed(2))
    own = {
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - position,
        "pos_embed": torch.cat([position, state["pos_embed"]], dim=1),
    }
    return {name: value for name, value in state.items() if name != "reg_token"} | own


@pytest.mark.parametrize("layout", [dict, with_registers])
def test_dinov2_with_registers(tmp_path, layout):
    theirs = dinov2("vit_small_patch14_reg4_dinov2")
    backbone, report = loaded(tmp_path / "w.pth", layout(theirs.state_dict()))
    assert backbone.spec["name"] == "vit_small_dinov2_reg4"
    assert report.format == ("dinov2" if layout is with_registers else "bare")
    assert_equal_features(backbone, theirs, (252, 126))
    assert backbone.attention_maps(images(252, 126)).shape == (2, 6, 18 * 9)


def test_a_square_dinov2_comes_to_the_size_of_persons(tmp_path):
    theirs = drawn(timm.create_model("vit_small_patch14_dinov2", num_classes=0, depth=1))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    backbone = build_backbone("vit_small_dinov2", img_size=(252, 126), depth=1)
    assert load_weights(backbone, tmp_path / "w.pth").resized == {"pos_embed": ((37, 37), (18, 9))}
    with pytest.raises(UserError, match=r"seems to hold .* \(set backbone.name: vit_small_dinov2\)"):
        load_weights(build_backbone("vit_small", depth=1), tmp_path / "w.pth")
    with pytest.raises(UserError, match="nearest that is: 252x126"):
        build_backbone("vit_small_dinov2", img_size=(256, 128))


def dinov3_names(state):
    """The authors' names, with the entries that are computed or only of the pre-training."""
    own = renamed(
        state,
        (r"^reg_token$", "storage_tokens"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
        (r"mlp\.fc1_g", "mlp.w1"),
        (r"mlp\.fc1_x", "mlp.w2"),
    )
    own = renamed(own, (r"mlp\.fc2", "mlp.w3")) if any("mlp.w1" in name for name in own) else own
    for block in range(2):
        prefix = f"blocks.{block}.attn."
        query, value = (own.pop(f"{prefix}{part}_bias", torch.zeros(384)) for part in "qv")
        own[f"{prefix}qkv.bias"] = torch.cat([query, torch.zeros(384), value])
        own[f"{prefix}qkv.bias_mask"] = torch.full((3 * 384,), float("nan"))
    return own | {"rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, 384)}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("vit_small_patch16_dinov3", "vit_small_dinov3"),
        ("vit_small_plus_patch16_dinov3", "vit_small_plus_dinov3"),
        ("vit_small_patch16_dinov3_qkvb", "vit_small_dinov3"),
    ],
)
@pytest.mark.parametrize("layout", [dict, dinov3_names])
@pytest.mark.parametrize("size", [(256, 128), (384, 128)])
def test_dinov3(tmp_path, name, ours, layout, size):
    theirs = drawn(timm.create_model(name, num_classes=0, global_pool="token", depth=2))
    backbone, _ = loaded(tmp_path / "w.pth", layout(theirs.state_dict()), img_size=list(size))
    assert backbone.spec["name"] == ours and backbone.spec.get("qkv_bias", False) == name.endswith("qkvb")
    assert_equal_features(backbone, theirs, size)


def test_models_of_timm_by_name_are_known(tmp_path):
    for name in ("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"):
        timms = timm.create_model(name, num_classes=5, depth=1).state_dict()
        backbone, report = loaded(tmp_path / "w.pth", timms)
        assert set(report.ignored) == {"head.weight", "head.bias"} and backbone.num_features == 384


# PASS: part tokens, and positions apart for each


def pass_state(seed=0, sizes=(64, 32)):
    vit = drawn(
        VisionTransformer(img_size=sizes, patch_size=16, num_classes=0, depth=2, class_token=True, **TIED), seed
    )
    state = vit.state_dict()
    tokens = {f"part_token{i}": torch.randn(1, 1, 64) for i in (1, 2, 3)}
    positions = {f"{part}_pos": torch.randn(1, 1, 64) for part in ("cls", "part1", "part2", "part3")}
    return vit, state | tokens | positions | {"pos_embed": state["pos_embed"][:, 1:]}


def plain_pass(vit, state, x):
    """PASS's forward pass, `FEAT_FUSION cat`: class token beside the mean of the part tokens."""
    tokens = [state["cls_token"], *(state[f"part_token{i}"] for i in (1, 2, 3))]
    places = [state["cls_pos"], *(state[f"part{i}_pos"] for i in (1, 2, 3)), state["pos_embed"]]
    patches = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    sequence = torch.cat([*(t.expand(len(x), -1, -1) for t in tokens), patches.flatten(2).transpose(1, 2)], dim=1)
    sequence = sequence + torch.cat(places, dim=1)
    for block in vit.blocks:
        sequence = block(sequence)
    sequence = F.layer_norm(sequence, (64,), state["norm.weight"], state["norm.bias"], eps=1e-6)
    return torch.cat([sequence[:, 0], sequence[:, 1:4].mean(dim=1)], dim=1)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("pass", lambda s: {"teacher": under("module.backbone.", s) | {"module.head.mlp.0.weight": torch.zeros(2, 2)}}),
        ("pass", lambda s: s),
        ("pass-reid", lambda s: under("base.", s) | {"bottleneck_1.weight": torch.zeros(64)}),
    ],
)
def test_pass(tmp_path, name, wrap):
    vit, state = pass_state()
    backbone, report = loaded(tmp_path / "w.pth", wrap(state))
    assert (backbone.spec["name"], report.format, backbone.num_features) == ("vit_small_pass", name, 128)
    assert_equal_features(backbone, lambda x: plain_pass(vit, state, x), (64, 32))
    with pytest.raises(UserError, match=r"set backbone.name: vit_small_pass"):
        load_weights(build_backbone("vit_tiny", img_size=(64, 32), depth=2, **TIED), tmp_path / "w.pth")


def test_the_positions_of_pass_come_to_another_grid(tmp_path):
    _, state = pass_state(sizes=(64, 32))
    torch.save(state, tmp_path / "w.pth")
    larger = build_backbone("vit_small_pass", img_size=(96, 64), depth=2, **TIED)
    assert load_weights(larger, tmp_path / "w.pth").resized == {"pos_embed": ((4, 2), (6, 4))}
    crops = [images(96, 64), images(64, 32)]
    parts = torch.cat([larger.eval()(crop) for crop in crops])
    torch.testing.assert_close(larger.features(crops), parts, rtol=0, atol=1e-5)


# SOLIDER: OpenMMLab's Swin, and a controller between the stages

LAMBDA = 0.2


def solider_state(swin):
    """SOLIDER's names for a Swin of timm, whose merging layers are in `Unfold`'s order already."""
    state = renamed(
        {n: v for n, v in swin.state_dict().items() if not n.startswith("head.")},
        (r"^layers\.(\d)\.downsample", lambda at: f"stages.{int(at[1]) - 1}.downsample"),
        (r"^layers", "stages"),
        (r"patch_embed\.proj", "patch_embed.projection"),
        (r"\.attn\.", ".attn.w_msa."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"^norm\.", "norm3."),
    )
    state |= {"stages.0.blocks.0.attn.w_msa.relative_position_index": torch.zeros(49, 49)}
    for place, width in enumerate((32, 64, 128, 128)):
        for part in "wb":
            state[f"semantic_embed_{part}.{place}.weight"] = torch.randn(width, 2)
            state[f"semantic_embed_{part}.{place}.bias"] = torch.randn(width)
    return state | {f"norm{i}.weight": torch.ones(16 * 2**i) for i in range(3)}


def plain_solider(swin, state, x):
    weights = torch.tensor([LAMBDA, 1 - LAMBDA])
    x = swin.patch_embed(x)
    for stage, layer in enumerate(swin.layers):
        x = layer.blocks(x)
        if stage < 3:
            B, H, W, C = x.shape
            x = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
            prefix = f"stages.{stage}.downsample."
            x = F.layer_norm(x, (4 * C,), state[prefix + "norm.weight"], state[prefix + "norm.bias"])
            x = (x @ state[prefix + "reduction.weight"].T).view(B, H // 2, W // 2, 2 * C)
            scale, shift = (
                state[f"semantic_embed_{part}.{stage}.weight"] @ weights + state[f"semantic_embed_{part}.{stage}.bias"]
                for part in "wb"
            )
            x = x * F.softplus(scale) + shift
    return F.layer_norm(x, (128,), state["norm3.weight"], state["norm3.bias"]).mean(dim=(1, 2))


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("solider", lambda s: {"teacher": under("backbone.", s) | {"head.mlp.0.weight": torch.zeros(2, 2)}}),
        ("solider", lambda s: under("backbone.", s)),
        ("solider-reid", lambda s: under("base.", s) | {"classifier.weight": torch.zeros(5, 128)}),
    ],
)
def test_solider(tmp_path, name, wrap):
    options = {"embed_dim": 16, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
    swin = drawn(SwinTransformer(img_size=(256, 128), strict_img_size=False, always_partition=True, **options))
    state = solider_state(swin)
    backbone, report = loaded(tmp_path / "w.pth", wrap(state))
    assert report.format == name and backbone.spec["name"] == "swin_tiny_solider"
    assert_equal_features(backbone, lambda x: plain_solider(swin, state, x), (256, 128))
    spared = [n for n in report.ignored if "norm0" in n or "semantic_embed_w.3" in n]
    assert len(spared) == 3 and all("not read" in report.ignored[n] for n in spared)
    other = build_backbone(**backbone.spec | {"semantic_weight": 1.0}).eval()
    load_weights(other, tmp_path / "w.pth")
    assert not torch.allclose(other(images(256, 128)), backbone(images(256, 128)))
    with pytest.raises(UserError, match=r"set backbone.name: swin_tiny_solider"):
        load_weights(build_backbone("swin_tiny", **options), tmp_path / "w.pth")


# CION_ReIDZoo, fast-reid, strong baseline, torchreid, LUPerson: ResNet-50, with or without IBN


def plain_resnet(state, x, ibn, last_stride):
    """ResNet-50 in eval mode, IBN-a in the first norm of each block of three stages."""

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    def first_norm(x, name):
        if f"{name}.IN.weight" not in state:
            return norm(x, name)
        half = x.shape[1] // 2
        own = F.instance_norm(x[:, :half], weight=state[f"{name}.IN.weight"], bias=state[f"{name}.IN.bias"])
        return torch.cat([own, norm(x[:, half:], f"{name}.BN")], dim=1)

    assert any(".bn1.IN." in name for name in state) == ibn
    x = F.max_pool2d(F.relu(norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1")), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in range(len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})):
            stride = 1 if block or stage == 1 else last_stride if stage == 4 else 2
            at = f"layer{stage}.{block}."
            out = F.relu(first_norm(F.conv2d(x, state[at + "conv1.weight"]), at + "bn1"))
            out = F.relu(norm(F.conv2d(out, state[at + "conv2.weight"], stride=stride, padding=1), at + "bn2"))
            out = norm(F.conv2d(out, state[at + "conv3.weight"]), at + "bn3")
            if at + "downsample.0.weight" in state:
                x = norm(F.conv2d(x, state[at + "downsample.0.weight"], stride=stride), at + "downsample.1")
            x = F.relu(out + x)
    return x.mean(dim=(2, 3))


class TwoBlocks(SmallResNet):
    """Two blocks in each stage: the second has neither a stride nor a layer beside it."""

    blocks = (2, 2, 2, 2)


@pytest.fixture(scope="module")
def resnets():
    """Tensors of a ResNet without and with IBN; meanwhile the place of ResNet-50 is taken by a small one."""
    patched = pytest.MonkeyPatch()
    patched.setattr("rayreid.models.resnet.ResNet50", TwoBlocks)
    patched.setattr("rayreid.models.architecture.RESNET50_BLOCKS", TwoBlocks.blocks)
    made = {}
    for ibn in (False, True):
        torch.manual_seed(0)
        network = build_backbone("resnet50_ibn" if ibn else "resnet50").eval()
        for name, value in network.state_dict().items():
            if name.endswith(("running_mean", "bn1.IN.bias", "bn1.BN.bias")):
                value.normal_(0, 0.1)
            if name.endswith("bn3.weight"):
                value.fill_(0.5)
        made[ibn] = network.state_dict()
    yield made
    patched.undo()


NECK = {"weight": torch.ones(2048), "bias": torch.zeros(2048), "running_mean": torch.zeros(2048)}
PIXELS = {"pixel_mean": torch.tensor([[[123.675]], [[116.28]], [[103.53]]]), "pixel_std": torch.full((3, 1, 1), 51.0)}


def fast_reid(state):
    heads = under("heads.bottleneck.0.", NECK) | {
        "heads.weight": torch.zeros(9, 2048),
        "heads.pool_layer.p": NECK["bias"],
    }
    return {"model": under("backbone.", state) | heads | PIXELS, "iteration": 3, "optimizer": {"state": {}}}


def torchreid(state):
    content = under("module.", state | {"classifier.weight": torch.zeros(9, 2048)})
    return {"state_dict": content, "epoch": 60, "rank1": np.float64(0.9), "optimizer": {"state": {}}}


def strong_baseline(state):
    return under("base.", state) | under("bottleneck.", NECK) | {"classifier.weight": torch.zeros(9, 2048)}


def luperson(state):
    beside = under("encoder_k.", state) | {"queue": torch.zeros(2, 3), "encoder_q.fc.0.weight": torch.zeros(2, 2)}
    return {"state_dict": under("module.", under("encoder_q.", state) | beside), "arch": "resnet50"}


def luperson_nl(state):
    heads = {f"{name}.weight": torch.zeros(2, 2048) for name in ("classifier", "fc1", "fc2", "embed_fc")}
    content = under("encoder_q.", state | heads) | under("encoder_k.", state | heads)
    content |= {"queue": torch.zeros(2, 3), "queue_id": torch.zeros(3, 1), "prototypes": torch.zeros(2, 3)}
    return {"state_dict": under("module.", content), "epoch": 90}


def cion(state):
    return {"teacher": under("module.backbone.", state) | {"module.head.mlp.0.weight": torch.zeros(2, 2)}, "epoch": 99}


@pytest.mark.parametrize(
    ("name", "ibn", "write"),
    [
        ("fast-reid", False, fast_reid),
        ("fast-reid", True, fast_reid),
        ("torchreid", False, torchreid),
        ("strong-baseline", False, strong_baseline),
        ("strong-baseline", True, strong_baseline),
        ("mocov2", False, luperson),
        ("lupersonnl", False, luperson_nl),
        ("dino", True, cion),
        ("bare", True, dict),
    ],
)
def test_resnets_for_re_identification_load_whole(tmp_path, resnets, name, ibn, write):
    backbone, report = loaded(tmp_path / "w.pth", write(resnets[ibn]))
    assert report.format == name and backbone.spec["name"] == ("resnet50_ibn" if ibn else "resnet50")
    assert all(torch.equal(value, resnets[ibn][key]) for key, value in backbone.state_dict().items())
    assert all(report.ignored.values()) and TITLES[name] in str(report)


@pytest.mark.parametrize(("ibn", "last_stride"), [(True, 1), (True, 2), (False, 1), (False, 2)])
def test_the_feature_of_a_resnet_is_that_of_plain_code(resnets, ibn, last_stride):
    backbone = build_backbone("resnet50_ibn" if ibn else "resnet50", last_stride=last_stride).eval()
    backbone.load_state_dict(resnets[ibn])
    assert_equal_features(backbone, lambda x: plain_resnet(resnets[ibn], x, ibn, last_stride), (128, 64))
    assert build_backbone("resnet50_ibn").layer4[0].conv2.stride == (1, 1), "as published"


def test_the_normalisation_of_fast_reid_is_in_its_file(tmp_path, resnets):
    _, report = loaded(tmp_path / "w.pth", fast_reid(resnets[False]))
    assert report.facts["mean"] == pytest.approx([0.485, 0.456, 0.406]) and report.facts["std"] == [0.2, 0.2, 0.2]


# ViTs of other projects


def vit(**options):
    return drawn(build_backbone("vit_tiny", img_size=(64, 32), depth=2, **TIED, **options))


def test_personvit(tmp_path):
    source = vit(stem="ics")
    teacher = under("backbone.", source.state_dict() | {"masked_embed": torch.zeros(1, 64)})
    backbone, report = loaded(
        tmp_path / "w.pth", {"teacher": teacher | {"head.last_layer2.weight_v": torch.zeros(2, 2)}}
    )
    assert sorted(report.ignored.values()) == ["mask token of the pre-training", "projection head"]
    assert_equal_features(backbone, source, (64, 32))


def test_hap_and_its_fine_tuned_model(tmp_path):
    source = vit()
    decoder = {"decoder_embed.weight": torch.zeros(2, 2), "decoder_blocks.0.norm1.weight": torch.zeros(2)}
    content = {"model": source.state_dict() | decoder | {"mask_token": torch.zeros(1, 1, 2)}, "epoch": 399}
    backbone, report = loaded(tmp_path / "w.pth", content)
    assert report.format == "mae" and len(report.ignored) == 3
    assert_equal_features(backbone, source, (64, 32))
    local = {"head.weight": torch.zeros(2, 64), "bn.weight": torch.ones(64), "conv_head.0.conv1.weight": torch.zeros(2)}
    backbone, report = loaded(
        tmp_path / "w.pth", {"model": source.state_dict() | local | {"conv_bn.bias": torch.ones(2)}}
    )
    assert len(report.ignored) == 4
    assert_equal_features(backbone, source, (64, 32))


def test_transreid_leaves_its_camera_table_and_its_local_branches_out(tmp_path):
    source, unused = vit(), vit().state_dict()
    state = source.state_dict()
    branch = renamed({n: v for n, v in state.items() if n.startswith("blocks.1.")}, (r"^blocks\.1\.", "b1.0."))
    branch |= renamed({n: v for n, v in state.items() if n.startswith("norm.")}, (r"^norm\.", "b1.1."))
    last = {name: torch.zeros_like(unused[name]) for name in state if name.startswith(("blocks.1.", "norm."))}
    table = {"base.sie_embed": torch.randn(6, 1, 64)}
    content = under("base.", state | last) | branch | renamed(branch, ("^b1", "b2")) | table
    backbone, report = loaded(tmp_path / "w.pth", content)
    assert "cameras" in report.ignored["base.sie_embed"] and "without it" in str(report)
    assert_equal_features(backbone, source, (64, 32))


# Families that no backbone here is, by their names

CLIP = {"class_embedding": torch.zeros(64), "transformer.resblocks.0.ln_1.weight": torch.zeros(64)}


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (under("image_encoder.", CLIP) | {"prompt_learner.cls_ctx": torch.zeros(2)}, "clip-reid", "QuickGELU"),
        (
            {
                "state_dict": {
                    "module.conv2.0.conv2a.conv1.weight": torch.zeros(2),
                    "module.classifier.bias": torch.ones(2),
                }
            },
            "osnet",
            "several scales",
        ),
        ({"embeddings.patch_embeddings.projection.weight": torch.zeros(2)}, "transformers", "timm:NAME"),
    ],
)
def test_other_families_are_refused_by_their_names(tmp_path, content, name, reason):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"{re.escape(TITLES[name])} of another architecture: .*{reason}") as error:
        check_weights(vit(), tmp_path / "w.pth")
    assert "strict: false would not help" in str(error.value)


@pytest.mark.parametrize(("part", "reason"), [("NL_2.0.g.weight", "non-local"), ("layer1.0.se.fc1.weight", "squeeze")])
def test_parts_of_fast_reid_that_no_resnet_here_has_are_refused(tmp_path, resnets, part, reason):
    torch.save(fast_reid(resnets[False] | {part: torch.zeros(2)}), tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"a model of fast-reid of another architecture: {reason}"):
        check_weights(build_backbone("resnet50"), tmp_path / "w.pth")
