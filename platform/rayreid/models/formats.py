"""Formats of checkpoints: how to recognise each, where the backbone is in it, and what else it contains."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rayreid.models.checkpoint_contents import Contents

# Layers that may follow a backbone of any origin.
HEADS = {
    "head.": "head",
    "head_dist.": "head",
    "fc.": "classifier",
    "fc1.": "projection head",
    "fc2.": "projection head",
    "embed_fc.": "layer before the classifier",
    "classifier": "classifier",
    "pre_logits.": "layer before the classifier",
    "bottleneck": "neck",
    "bn.": "neck",
    "gem.": "pooling",
    "conv_head.": "branch of local features",
    "conv_fc": "branch of local features",
    "conv_bn.": "branch of local features",
    "n_averaged": "counter of the averaged steps",
}

Rearrange = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], dict[str, str]]]


@dataclass(frozen=True)
class Format:
    """One format of other origin.

    Attributes:
        name: A single word.
        title: A description for people.
        recognise: Whether a file has this format; the first match in `FORMATS` is taken.
        inside: Prefix of the backbone's names in the file.
        beside: Prefix of names that are left out → the reason.
        rearrange: Function that moves tensors to other names before prefixes are considered; it also returns the names
            that it left out.
        heads: Width of a ViT → its attention heads, if they are not the usual ones, because no tensor reveals them.
        differs: What tells the network from all that can be built here; "" if it can be.
        alone: Whether all that is not `inside` is left out, whatever its name.
    """

    name: str
    title: str
    recognise: Callable[[Contents], bool]
    inside: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)
    rearrange: Rearrange | None = None
    heads: Mapping[int, int] = field(default_factory=dict)
    differs: str = ""
    alone: bool = False


def _of_reid_shape(contents: Contents) -> bool:
    """Return whether a DINO checkpoint comes from TransReID-SSL, by its stem, its settings or non-square positions."""
    table = next((value for name, value in contents.state.items() if name.endswith("pos_embed")), None)
    patches = table.shape[1] - 1 if table is not None and table.dim() == 3 else 0
    oblong = patches > 0 and math.isqrt(patches) ** 2 != patches
    return contents.mentions("patch_embed.conv.") or "img_size" in contents.facts or oblong


def _global_branch(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the global branch of TransReID with local branches (JPM): `b1`, a copy of the last block and the norm.

    `base` ends before its own last block there, which was never trained (TransReID, `build_transformer_local`).
    """
    if not any(name.startswith("b1.") for name in state):
        return dict(state), {}
    blocks = [int(name.split(".")[2]) for name in state if name.startswith("base.blocks.")]
    if not blocks:
        raise KeyError("base.blocks.*")
    last = max(blocks)
    places = {"b1.0.": f"base.blocks.{last}.", "b1.1.": "base.norm."}
    unused = tuple(places.values())
    left = {name: "not in use, b1 takes its place" for name in state if name.startswith(unused)}
    kept = {name: value for name, value in state.items() if name not in left}
    for branch, place in places.items():
        kept = {place + name.removeprefix(branch) if name.startswith(branch) else name: kept[name] for name in kept}
    return kept, left


def _named_layers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the layers of Cluster Contrast's ResNet, which are stored in a sequence, from positions to names."""
    names = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}
    places = {f"base.{place}.": f"base.{name}." for place, name in names.items()}
    return {re.sub(r"^base\.\d\.", lambda at: places.get(at[0], at[0]), name): state[name] for name in state}, {}


def _is_backbone_of_dino(contents: Contents) -> bool:
    """Return whether a file holds `backbone.*` in a teacher, or beside a head of DINO or iBOT and no other part."""
    parts = (*PROJECTION, *HEADS, "backbone.")
    if not contents.has("backbone."):
        return False
    return contents.container == "teacher" or (
        contents.has(*DINO_HEADS) and all(name.startswith(parts) for name in contents.state)
    )


NECKS = {
    "bottleneck": "neck",
    "feat": "neck",
    "fcneck": "neck",
    "classifier": "classifier",
    "b2.": "branch of local features",
    "gap.": "pooling",
}
CLUSTER_CONTRAST = "a re-identification model of Cluster Contrast"
PROJECTION = {
    "head": "projection head",
    "dino_head.": "projection head",
    "ibot_head.": "projection head",
    "projector.": "projection head",
    "predictor.": "prediction head",
}
DINO_HEADS = ("head.mlp.", "head.last_layer", "dino_head.", "ibot_head.")
QUEUES = {"queue": "queue of the pre-training", "prototypes": "prototypes of the pre-training"}

FORMATS: tuple[Format, ...] = (
    Format(
        "rayreid-state",
        "a training state of rayreid (its teacher)",
        lambda c: c.container == "method" and c.has("teacher.backbone."),
        "teacher.backbone.",
        {"student.": "student", "teacher.head.": "projection head", "loss.": "centre"},
    ),
    Format(
        "rayreid-state",
        "a training state of rayreid (its trained encoder)",
        lambda c: c.container == "method" and c.has("base.backbone."),
        "base.backbone.",
        {
            "momentum.": "momentum encoder",
            "base.projector.": "projection head",
            "predictor.": "prediction head",
            **QUEUES,
        },
    ),
    Format(
        "clip-reid",
        "a model of CLIP-ReID",
        lambda c: c.has("image_encoder."),
        "image_encoder.",
        differs="the image encoder of CLIP normalises its tokens before the first block, has QuickGELU, and projects "
        "its feature, none of which a ViT here does",
    ),
    Format(
        "transformers",
        "a model of Hugging Face's transformers",
        lambda c: c.mentions("embeddings.patch_embeddings."),
        differs="its names and shapes are not those of the authors: take the authors' file, or timm:NAME",
    ),
    Format(
        "osnet",
        "OSNet of torchreid",
        lambda c: c.mentions("conv2a."),
        differs="its blocks of several scales have no place in a ResNet",
    ),
    Format(
        "fast-reid",
        "a model of fast-reid",
        lambda c: c.has("backbone.") and c.has("heads."),
        "backbone.",
        {"heads.": "neck and classifier", "pixel_": "normalisation"},
    ),
    Format("pass-reid", "a re-identification model of PASS", lambda c: c.has("base.part_token"), "base.", NECKS),
    Format("pass", "a checkpoint of PASS", lambda c: c.mentions("part_token"), "backbone.", PROJECTION),
    Format(
        "solider-reid",
        "a re-identification model of SOLIDER-REID",
        lambda c: c.has("base.semantic_embed_"),
        "base.",
        NECKS,
    ),
    Format("solider", "a checkpoint of SOLIDER", lambda c: c.mentions("semantic_embed_"), "backbone.", PROJECTION),
    Format(
        "lupersonnl",
        "a pre-training checkpoint of LUPerson-NL",
        lambda c: c.has("encoder_q.") and c.has("prototypes", "queue_id"),
        "encoder_q.",
        {"encoder_k.": "momentum encoder", **QUEUES},
    ),
    Format("mae", "a pre-training checkpoint of MAE or HAP", lambda c: c.mentions("decoder_embed.")),
    Format("dinov3", "a backbone of DINOv3", lambda c: c.has("storage_tokens")),
    Format(
        "dinov2", "a backbone of DINOv2", lambda c: c.has("mask_token", "register_tokens") and c.mentions(".ls1.gamma")
    ),
    Format(
        "mocov3",
        "a pre-training checkpoint of MoCo v3",
        lambda c: c.has("base_encoder."),
        "base_encoder.",
        {"momentum_encoder.": "momentum encoder", "predictor.": "prediction head"},
        heads={384: 12},
    ),
    Format(
        "mocov2",
        "a pre-training checkpoint of MoCo v2",
        lambda c: c.has("encoder_q."),
        "encoder_q.",
        {"encoder_k.": "momentum encoder", **QUEUES},
    ),
    Format(
        "moby",
        "a pre-training checkpoint of MoBY",
        lambda c: c.has("encoder.") and c.has("encoder_k."),
        "encoder.",
        {"encoder_k.": "momentum encoder", "projector": "projection head", "predictor.": "prediction head", **QUEUES},
    ),
    Format(
        "transreid-pretraining",
        "a pre-training checkpoint of TransReID-SSL (its teacher)",
        lambda c: _is_backbone_of_dino(c) and _of_reid_shape(c),
        "backbone.",
        PROJECTION,
    ),
    Format(
        "dino",
        "a pre-training checkpoint of DINO (its teacher)",
        _is_backbone_of_dino,
        "backbone.",
        PROJECTION,
    ),
    Format(
        "wrapped", "a backbone inside another model (backbone.*)", lambda c: c.has("backbone."), "backbone.", alone=True
    ),
    Format("cluster-contrast", CLUSTER_CONTRAST, lambda c: c.has("base.4."), "base.", NECKS, _named_layers),
    Format(
        "strong-baseline",
        "a re-identification model of reid-strong-baseline (base.*)",
        lambda c: c.has("base.layer1.") and c.container != "method",
        "base.",
        NECKS,
    ),
    Format("reid", "a re-identification model (base.*)", lambda c: c.has("base."), "base.", NECKS, _global_branch),
    Format("cluster-contrast", CLUSTER_CONTRAST, lambda c: c.has("bottleneck."), beside=NECKS),
    Format("swin", "a Swin transformer of its authors", lambda c: c.has("layers.0.downsample.")),
    Format(
        "transreid-converted", "a converted backbone of TransReID-SSL", lambda c: c.mentions("patch_embed.conv.1.IN")
    ),
    Format(
        "torchreid",
        "a model of torchreid",
        lambda c: c.container == "state_dict" and c.has("classifier.") and c.has("layer1."),
        beside={"fc.": "layer before the classifier"},
    ),
    Format("timm", "a model of timm or torchvision", lambda c: c.has(*HEADS, "fc_norm.", "layers.3.downsample.")),
    Format("bare", "a bare backbone (as DINO, timm and converters leave it)", lambda c: True),
)
TITLES = {"rayreid": "weights of rayreid", **{form.name: form.title for form in FORMATS}}
