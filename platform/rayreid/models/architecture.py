"""Recognition of an architecture: the arguments of `build_backbone` that fit the tensors of a backbone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rayreid.errors import UserError
from rayreid.models.checkpoints import describe, stem_of
from rayreid.models.positions import ambiguity, class_rows, possible_grids
from rayreid.models.swin import SEMANTIC_SWINS, SWINS
from rayreid.models.vit import DINOV3S, VARIANTS, VITS

HEAD_WIDTH = 64  # channels per attention head in every published ViT whose name implies its width
RESNET50_BLOCKS = (3, 4, 6, 3)
PARTS = 3  # part tokens of PASS
VIT_DEFAULTS: dict[str, Any] = {
    **{"layer_scale": False, "parts": 0, "registers": 0, "mlp": "", "patch_size": 16, "mlp_ratio": 4},
    "qkv_bias": False,
}
FAMILY = ("layer_scale", "parts", "registers", "mlp")  # what tells one family of ViTs from another
PATCH_OF_STEM = {"patchify": 1, "conv": 2, "ics": 2}  # the layers in front of the last convolution halve the image


@dataclass(frozen=True)
class Shape:
    """The architecture that a backbone's tensors reveal.

    Attributes:
        spec: Arguments of `build_backbone`, JSON-able. Except for the depth, those that the name implies are left out.
        unknown: Argument that the tensors do not reveal → the reason, and the option to give.
    """

    spec: dict[str, Any]
    unknown: dict[str, str] = field(default_factory=dict)


def recognise(
    state: Mapping[str, Tensor], *, header: Mapping[str, Any] | None = None, hint: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the arguments of `build_backbone` for a backbone's tensors.

    Args:
        state: Name → tensor, with names as in timm.
        header: The header of a file of ours, which is complete; None for files of other origin.
        hint: Arguments that the user knows better, e.g. `img_size`, `num_heads`.

    Raises:
        UserError: The tensors belong to no known backbone, or an argument is neither in the tensors nor in the hint.
    """
    known = {key: value for key, value in (hint or {}).items() if value is not None}
    if header is not None:
        return {**header["backbone"], **known}
    shape = read_off(state)
    for argument, reason in shape.unknown.items():
        if argument not in known:
            raise UserError(reason)
    return {**shape.spec, **known}


def read_off(state: Mapping[str, Tensor]) -> Shape:
    """Return the architecture that a backbone's tensors reveal by themselves.

    Raises:
        UserError: The tensors belong to no known backbone, or have too few dimensions.
    """
    try:
        return _read_off(state)
    except (LookupError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"the file holds {describe(state)}, but some of its tensors are missing or have too few dimensions"
        ) from error


def _read_off(state: Mapping[str, Tensor]) -> Shape:
    if "cls_token" in state and "reg_token" in state and "blocks.0.gamma_1" in state:
        return _dinov3(state)
    if "cls_token" in state and "pos_embed" in state and _count(state, "blocks."):
        return _vit(state)
    if any(name.startswith("layers.0.blocks.") for name in state) and "patch_embed.proj.weight" in state:
        return _swin(state)
    if "layer4.0.conv1.weight" in state:
        return _resnet(state)
    raise UserError(f"the file holds no backbone that rayreid can build, but {describe(state)}")


def _vit(state: Mapping[str, Tensor]) -> Shape:
    stem, width = stem_of(state), state["cls_token"].shape[-1]
    patch = _patch(state, stem)
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    layered = "blocks.0.ls1.gamma" in state
    seen: dict[str, Any] = {
        "embed_dim": width,
        "layer_scale": layered,
        # three tokens without LayerScale are PASS's; the other published models have four, and LayerScale
        "parts": registers if registers == PARTS and not layered else 0,
        "registers": registers if registers != PARTS or layered else 0,
        "mlp": _mlp(state),
        "patch_size": patch[0] if patch[0] == patch[1] else list(patch),
        "mlp_ratio": _mlp_ratio(state, "blocks.0.mlp.fc1.weight"),
    }
    name = _closest({**VITS, **VARIANTS}, seen, VIT_DEFAULTS)
    spec: dict[str, Any] = {"name": name, "stem": stem, "depth": _count(state, "blocks.")}
    spec |= _other(seen, {**VIT_DEFAULTS, **{**VITS, **VARIANTS}[name]})
    unknown = _set_heads(spec, width, {**VITS, **VARIANTS}[name])
    positions = state["pos_embed"].shape[1] - class_rows(state)
    grids = possible_grids(positions)
    if len(grids) != 1:
        unknown["img_size"] = (
            f"the tensors do not reveal the image size: {ambiguity(positions, patch)}; give --img-size HEIGHT WIDTH"
        )
    else:
        spec["img_size"] = [grids[0][0] * patch[0], grids[0][1] * patch[1]]
    return Shape(spec, unknown)


def _dinov3(state: Mapping[str, Tensor]) -> Shape:
    """Return the architecture of a ViT of DINOv3, whose weights do not depend on the image size."""
    seen: dict[str, Any] = {
        "embed_dim": state["cls_token"].shape[-1],
        "mlp": _mlp(state),
        "patch_size": _patch(state, "patchify")[0],
        "qkv_bias": "blocks.0.attn.q_bias" in state,
    }
    name = _closest(DINOV3S, seen, VIT_DEFAULTS)
    spec: dict[str, Any] = {"name": name, "stem": "patchify", "depth": _count(state, "blocks.")}
    spec |= _other(seen, {**VIT_DEFAULTS, **DINOV3S[name]})
    return Shape(spec, _set_heads(spec, seen["embed_dim"], DINOV3S[name]))


def _closest(names: Mapping[str, Mapping[str, Any]], seen: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the name of the same family whose width is the same, or else the next smaller one (or the smallest)."""

    def differences(name: str) -> int:
        return len(_other({key: seen[key] for key in FAMILY if key in seen}, {**defaults, **names[name]}))

    least = min(map(differences, names))
    return _named(
        seen["embed_dim"], {name: int(names[name]["embed_dim"]) for name in names if differences(name) == least}
    )


def _other(seen: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are not those of a name."""
    return {key: value for key, value in seen.items() if value != own[key]}


def _set_heads(spec: dict[str, Any], width: int, own: Mapping[str, Any]) -> dict[str, str]:
    """Set the number of heads of a width that is not the name's; return the reason if that number is not known."""
    if width == own["embed_dim"]:
        return {}
    if width % HEAD_WIDTH:
        reason = (
            f"the tensors do not reveal how many heads a ViT of width {width} has"
            f" (not a multiple of {HEAD_WIDTH}); give --num-heads"
        )
        return {"num_heads": reason}
    spec["num_heads"] = width // HEAD_WIDTH
    return {}


def _mlp(state: Mapping[str, Tensor]) -> str:
    """Return the kind of MLP: SwiGLU's first layer is twice as wide as the second reads, or stands in two parts."""
    first, second = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
    if first is None or second is None:
        return "swiglu" if "blocks.0.mlp.fc1_g.weight" in state else ""
    return "swiglu" if first.shape[0] == 2 * second.shape[1] else ""


def _swin(state: Mapping[str, Tensor]) -> Shape:
    """Return the architecture of a Swin.

    Its weights do not depend on the image size, so `img_size` is left at the default.
    """
    tables = [
        state.get(f"layers.{i}.blocks.0.attn.relative_position_bias_table") for i in range(_count(state, "layers."))
    ]
    if any(table is None for table in tables):
        raise UserError(
            "the file holds a Swin transformer without relative positions: rayreid builds the first version only"
        )
    seen: dict[str, Any] = {
        "embed_dim": state["patch_embed.proj.weight"].shape[0],
        "depths": [_count(state, f"layers.{i}.blocks.") for i in range(len(tables))],
        "num_heads": [table.shape[1] for table in tables if table is not None],
        "window_size": (math.isqrt(tables[0].shape[0]) + 1) // 2 if tables[0] is not None else 7,
    }
    known = SEMANTIC_SWINS if "semantic_embed_w.0.weight" in state else SWINS
    names = [name for name, own in known.items() if all(list(own[k]) == seen[k] for k in ("depths", "num_heads"))]
    name = names[0] if names else _named(seen["embed_dim"], {name: own["embed_dim"] for name, own in known.items()})
    own = {"window_size": 7, **known[name]}
    spec: dict[str, Any] = {"name": name, "stem": "patchify"}
    spec |= {key: value for key, value in seen.items() if value != _listed(own[key])}
    if (ratio := _mlp_ratio(state, "layers.0.blocks.0.mlp.fc1.weight")) != 4:
        spec["mlp_ratio"] = ratio
    return Shape(spec)


def _resnet(state: Mapping[str, Tensor]) -> Shape:
    blocks = tuple(_count(state, f"layer{stage}.") for stage in (1, 2, 3, 4))
    if blocks != RESNET50_BLOCKS or "layer1.0.conv3.weight" not in state:
        raise UserError(f"the file holds a ResNet with {blocks} blocks; of ResNets rayreid builds ResNet-50 only")
    normed = "layer1.0.bn1.IN.weight" in state
    return Shape({"name": "resnet50_ibn" if normed else "resnet50", "stem": "patchify"})


def _named(width: int, widths: Mapping[str, int]) -> str:
    """Return the name with that width, or else with the next smaller one (the smallest, if there is none)."""
    return max(
        widths, key=lambda name: (widths[name] <= width, widths[name] if widths[name] <= width else -widths[name])
    )


def _mlp_ratio(state: Mapping[str, Tensor], name: str) -> float:
    """Return the width of an MLP in widths of the tokens, rounded up: timm rounds the product of the two down."""
    return math.ceil(1e5 * state[name].shape[0] / state[name].shape[1]) / 1e5 if name in state else 4


def _patch(state: Mapping[str, Tensor], stem: str) -> tuple[int, int]:
    weight = state.get("patch_embed.proj.weight")
    if weight is None or weight.dim() != 4:
        raise UserError("the file holds a ViT without the convolution patch_embed.proj: rayreid has no such stem")
    return PATCH_OF_STEM[stem] * weight.shape[2], PATCH_OF_STEM[stem] * weight.shape[3]


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of different next parts of the names below a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
