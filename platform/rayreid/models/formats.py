"""Formats of checkpoints: how to recognise each, where the backbone is in it, and what else it contains."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from rayreid.errors import UserError, one_line
from rayreid.models.layouts import timm_names
from rayreid.models.wrappers import peeled, roots

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
# Parts that a network may have and the backbones here lack: its tensors would otherwise load into a different network.
DIFFERENCES = {
    "part_token": "its part tokens have no positions of their own (PASS with SIE), which no network here computes",
    "dist_token": "a distillation token beside the class token (distilled DeiT) has no place in this ViT",
    "fc_norm.": "the mean over patches takes the place of the class token in this file",
    "NL_": "non-local blocks between the stages (fast-reid's NL) have no place in this ResNet",
    ".se.": "squeeze-and-excitation in every block (fast-reid's SE) has no place in this ResNet",
}


@dataclass(frozen=True)
class Contents:
    """A checkpoint file taken apart.

    Attributes:
        state: Name → tensor, without the `module.` of data-parallel training.
        container: The key under which the tensors were stored (`teacher`, `method`, `state_dict`, `model`), or "".
        facts: Facts that the file states about itself: `arch`, `epoch`, `img_size` (height, width).
    """

    state: Mapping[str, Tensor]
    container: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def has(self, *prefixes: str) -> bool:
        """Return whether a name begins with one of these prefixes."""
        return any(name.startswith(prefixes) for name in self.state)

    def mentions(self, part: str) -> bool:
        """Return whether a name contains this part."""
        return any(part in name for name in self.state)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one file, under the backbone's own names.

    Attributes:
        format: Name of the format in `FORMATS`, or "rayreid" (ours).
        state: Name → tensor.
        ignored: Name in the file that is not part of a backbone → the reason for leaving it out.
        header: Our header as JSON text, "" for files of other origin.
        facts: Known facts beyond the tensors: `arch`, `epoch`, `img_size` (height, width), `num_heads`, `mean`, `std`;
            unknown ones are absent.
        differs: Description of parts of the file's network that no backbone here has; "" for most files.
    """

    format: str
    state: dict[str, Tensor]
    ignored: dict[str, str] = field(default_factory=dict)
    header: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    differs: str = ""

    def facts_of_shape(self) -> dict[str, Any]:
        """Return the known arguments of `build_backbone` that the tensors do not reveal."""
        return {key: self.facts[key] for key in ("img_size", "num_heads") if key in self.facts}


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


def adapt(contents: Contents, source: str = "the file") -> Checkpoint:
    """Find the backbone in the content of a file of other origin, and rename its tensors to the backbone's names.

    Prefixes of an outer model are taken off until a known format shows. Names that no rule explains are kept, so that
    they are refused by name later.

    Args:
        contents: The content of the file.
        source: The file, for messages.

    Raises:
        UserError: The file holds several networks between which nothing decides, or tensors of a family are missing or
            have other shapes than that family's.
    """
    outside: dict[str, str] = {}
    form = _recognised(contents)
    while _lies_deeper(contents, form):
        prefix, inner, left = peeled(contents.state, source)
        outside |= left
        contents = replace(contents, state=inner, facts={**contents.facts, **_choice(prefix, left)})
        form = _recognised(contents)
    try:
        return _translated(contents, form, outside)
    except (LookupError, ValueError, RuntimeError, TypeError) as error:
        fault = f"{error.args[0]} is missing" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{source} is a damaged or incomplete file: by its names {form.title}, but {fault}") from error


def _translated(contents: Contents, form: Format, outside: Mapping[str, str]) -> Checkpoint:
    """Return the backbone's tensors under its own names.

    Args:
        contents: The content of the file.
        form: Its format.
        outside: Name that was left out before → the reason.
    """
    tensors, ignored = form.rearrange(contents.state) if form.rearrange else (dict(contents.state), {})
    found: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for name, value in tensors.items():
        inner_name = name.removeprefix(form.inside)
        reason = _reason(name, form.beside) or _reason(inner_name, HEADS)
        if reason is None and inner_name.startswith("fc_norm.") and form.inside + "norm.weight" in tensors:
            reason = "norm of the head"
        if reason is None and form.alone and inner_name == name:
            reason = f"outside of {form.inside}*, which holds the backbone"
        if reason is None:
            found[inner_name], names[inner_name] = value, name
        else:
            ignored[name] = reason
    state, spare = timm_names(found)
    spare = {names.get(name, name): reason for name, reason in spare.items()}
    differs = [form.differs] if form.differs else []
    differs += [words for part, words in DIFFERENCES.items() if any(part in name for name in state)]
    facts = {**contents.facts, **_normalisation(contents), **_heads(form, state)}
    return Checkpoint(form.name, state, {**outside, **ignored, **spare}, facts=facts, differs="; ".join(differs))


def _recognised(contents: Contents) -> Format:
    return next(form for form in FORMATS if form.recognise(contents))


def _choice(prefix: str, left: Iterable[str]) -> dict[str, str]:
    """Return the fact that the network under a prefix was taken, if there are others among the names left out."""
    others = sorted({root.partition(".")[0] for root in roots(left)})
    return {"taken": f"{prefix}* (beside {', '.join(f'{other}.*' for other in others)})"} if others else {}


def _lies_deeper(contents: Contents, form: Format) -> bool:
    """Return whether the network lies under a prefix that the format does not explain."""
    found = roots(contents.state)
    return bool(found) and "" not in found and form.inside not in found


def _normalisation(contents: Contents) -> dict[str, Any]:
    """Return mean and std for images in [0, 1], which fast-reid stores for images in [0, 255]."""
    names = {"mean": "pixel_mean", "std": "pixel_std"}
    if not all(name in contents.state for name in names.values()):
        return {}
    return {fact: [float(value) / 255 for value in contents.state[name].flatten()] for fact, name in names.items()}


def _heads(form: Format, state: Mapping[str, Tensor]) -> dict[str, int]:
    token = state.get("cls_token")
    width = token.shape[-1] if token is not None and token.dim() else 0
    return {"num_heads": form.heads[width]} if width in form.heads else {}


def _reason(name: str, prefixes: Mapping[str, str]) -> str | None:
    return next((reason for prefix, reason in prefixes.items() if name.startswith(prefix)), None)
