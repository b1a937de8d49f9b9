"""Formats of checkpoints: how to recognise each, where the backbone is in it, and what else it contains."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Layers that may follow a backbone of any origin.
HEADS = {
    "head.": "head",
    "head_dist.": "head",
    "fc.": "classifier",
    "pre_logits.": "layer before the classifier",
    "bottleneck": "neck",
}
COMPUTED = (".relative_position_index", ".attn_mask")
# Parts that a network may have and the backbones here lack: its tensors would otherwise load into a different network.
DIFFERENCES = {
    "part_token": "part tokens beside the class token, attended to in every block (PASS), have no place in this ViT",
    "semantic_embed_": "a semantic controller scales and shifts the output of every stage (SOLIDER), which this Swin "
    "does not do",
    "dist_token": "a distillation token beside the class token (distilled DeiT) has no place in this ViT",
    "sie_embed": "an embedding of the camera or view is added to every token (TransReID's SIE), which this ViT does "
    "not do",
    "reg_token": "register tokens have no place in this ViT",
    "fc_norm.": "the mean over patches takes the place of the class token in this file",
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
    """

    name: str
    title: str
    recognise: Callable[[Contents], bool]
    inside: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)
    rearrange: Rearrange | None = None
    heads: Mapping[int, int] = field(default_factory=dict)


def _of_reid_shape(contents: Contents) -> bool:
    """Return whether a DINO checkpoint comes from TransReID-SSL, by its stem, its settings or non-square positions."""
    table = next((value for name, value in contents.state.items() if name.endswith("pos_embed")), None)
    oblong = table is not None and round((table.shape[1] - 1) ** 0.5) ** 2 != table.shape[1] - 1
    return contents.mentions("patch_embed.conv.") or "img_size" in contents.facts or oblong


def _global_branch(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the global branch of TransReID with local branches (JPM): `b1`, a copy of the last block and the norm.

    `base` ends before its own last block there, which was never trained (TransReID, `build_transformer_local`).
    """
    if not any(name.startswith("b1.") for name in state):
        return dict(state), {}
    last = max(int(name.split(".")[2]) for name in state if name.startswith("base.blocks."))
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


NECKS = {
    "bottleneck": "neck",
    "feat": "neck",
    "fcneck": "neck",
    "classifier": "classifier",
    "b2.": "branch of local features",
    "gap.": "pooling",
}
CLUSTER_CONTRAST = "a re-identification model of Cluster Contrast"
PROJECTION = {"head.": "projection head", "projector.": "projection head", "predictor.": "prediction head"}
QUEUES = {"queue": "queue of the pre-training"}

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
    Format("pass", "a checkpoint of PASS", lambda c: c.mentions("part_token"), "backbone.", PROJECTION),
    Format("solider", "a checkpoint of SOLIDER", lambda c: c.mentions("semantic_embed_"), "backbone.", PROJECTION),
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
        lambda c: (c.container == "teacher" or c.has("backbone.")) and _of_reid_shape(c),
        "backbone.",
        PROJECTION,
    ),
    Format(
        "dino",
        "a pre-training checkpoint of DINO (its teacher)",
        lambda c: c.container == "teacher" or c.has("backbone."),
        "backbone.",
        PROJECTION,
    ),
    Format("cluster-contrast", CLUSTER_CONTRAST, lambda c: c.has("base.4."), "base.", NECKS, _named_layers),
    Format("reid", "a re-identification model (base.*)", lambda c: c.has("base."), "base.", NECKS, _global_branch),
    Format("cluster-contrast", CLUSTER_CONTRAST, lambda c: c.has("bottleneck."), beside=NECKS),
    Format("swin", "a Swin transformer of its authors", lambda c: c.has("layers.0.downsample.")),
    Format(
        "transreid-converted", "a converted backbone of TransReID-SSL", lambda c: c.mentions("patch_embed.conv.1.IN")
    ),
    Format("timm", "a model of timm or torchvision", lambda c: c.has(*HEADS, "fc_norm.", "layers.3.downsample.")),
    Format("bare", "a bare backbone (as DINO, timm and converters leave it)", lambda c: True),
)
TITLES = {"rayreid": "weights of rayreid", **{form.name: form.title for form in FORMATS}}


def adapt(contents: Contents) -> Checkpoint:
    """Find the backbone in the content of a file of other origin, and rename its tensors to the backbone's names.

    Names that no rule explains are kept, so that they are refused by name later.
    """
    form = next(form for form in FORMATS if form.recognise(contents))
    tensors, ignored = form.rearrange(contents.state) if form.rearrange else (dict(contents.state), {})
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        inner = name.removeprefix(form.inside)
        reason = _reason(name, form.beside) or _reason(inner, HEADS)
        if reason is None and inner.endswith(COMPUTED):
            reason = "computed, not learnt"
        if reason is None and inner.startswith("fc_norm.") and form.inside + "norm.weight" in tensors:
            reason = "norm of the head"
        if reason is None:
            state[inner] = value
        else:
            ignored[name] = reason
    facts = dict(contents.facts)
    width = state["cls_token"].shape[-1] if "cls_token" in state else 0
    if width in form.heads:
        facts["num_heads"] = form.heads[width]
    differs = [words for part, words in DIFFERENCES.items() if any(part in name for name in state)]
    return Checkpoint(form.name, _timm_swin(state), ignored, facts=facts, differs="; ".join(differs))


def _reason(name: str, prefixes: Mapping[str, str]) -> str | None:
    return next((reason for prefix, reason in prefixes.items() if name.startswith(prefix)), None)


def _timm_swin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the downsampling layers of a Swin as in timm.

    Swin's authors put them at the end of a stage (`layers.0.downsample`), timm at the beginning of the next.
    """
    if not any(name.startswith("layers.0.downsample.") for name in state):
        return state
    step = re.compile(r"^layers\.(\d+)\.downsample\.")
    return {step.sub(lambda at: f"layers.{int(at[1]) + 1}.downsample.", name): state[name] for name in state}
